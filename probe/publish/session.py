"""One connection to the broker, from CONNECT to its end: the only module that speaks to paho-mqtt.

A session is made for each attempt and thrown away with it, so nothing of a dead connection (queued packets, message
ids, states) can leak into the next one. A thread of ours runs paho's loop; everything it hears is handed to the
asyncio loop, and nothing that happens there can end the thread unseen.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from probe import config
from probe.messages import PACKET_BYTES_MAX
from probe.publish.paho import (
    CallbackAPIVersion,
    MQTTErrorCode,
    PacketTypes,
    Properties,
    ReasonCode,
    SubscribeOptions,
    mqtt,
)

log = logging.getLogger(__name__)

# How long paho's loop waits in select, at most: a publish wakes it at once, this is only for its keepalive clock.
_LOOP_S_MAX: Final = 5.0
_LOOPS_PER_KEEPALIVE: Final = 4
# For TCP and for each step of the TLS handshake: a mobile line that wakes up takes several seconds.
_CONNECT_TIME_OUT_S: Final = 15.0
# The broker keeps commands and receipts for a probe that is away; what is older is of no use (a receipt comes again).
_SESSION_EXPIRY_S: Final = 7 * 86400
# paho forgets the broker's Receive Maximum; the publisher never hands over more than this, nor more than the broker's.
INFLIGHT_MAX: Final = 10
# MQTT 5, 3.2.2.3.3: what a broker takes at once that does not say so.
_RECEIVE_MAXIMUM_DEFAULT: Final = 65535
# Messages heard and not yet handled. The controller sends a handful; more is a fault of somebody.
_HEARD_MAX: Final = 1000
# TCP's own probes on an idle connection: they keep a NAT entry alive and find a dead path.
_TCP_PROBE_PERIOD_S: Final = 15
_TCP_PROBES: Final = 4
_NO_SUBSCRIBERS: Final = 0x10  # MQTT 5, 3.4.2.1
_PINGRESP_LOG: Final = "Received PINGRESP"


@dataclass(frozen=True, slots=True)
class Will:
    """The message that the broker publishes when the probe is gone without a word."""

    topic: str
    payload: bytes
    delay_s: int


@dataclass(frozen=True, slots=True)
class Welcome:
    """What the broker said when it accepted the connection."""

    session_present: bool
    inflight_max: int
    packet_bytes_max: int
    keepalive_s: int


@dataclass(frozen=True, slots=True)
class Farewell:
    """How a connection ended. `by_word`: the broker sent DISCONNECT, so the reason is its own."""

    reason: str
    by_word: bool = False
    error: Exception | None = None
    refused: bool = False


class Listener(Protocol):
    """Who hears what happens on a session. Every call is made in the asyncio loop."""

    def welcomed(self, session: Session, welcome: Welcome) -> None:
        """The broker accepted the connection."""

    def acknowledged(self, session: Session, message_id: int, failure: str | None) -> None:
        """The broker answered a publication; `failure` is its reason when it did not accept it."""

    def heard(self, session: Session, topic: str, payload: bytes) -> None:
        """A message came."""

    def ended(self, session: Session, farewell: Farewell) -> None:
        """The connection is over, or could not be made. Nothing follows."""


class Session:
    """One attempt at one connection.

    Args:
        broker: where it is.
        client_id: the agent's id.
        will: the Last Will.
        bind_address: the source address, absent for the host's choice.
        listener: who hears of it, in `loop`.
        loop: the asyncio loop to hand over to.
    """

    def __init__(
        self,
        broker: config.Broker,
        client_id: str,
        will: Will,
        bind_address: str | None,
        listener: Listener,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.dropped_messages = 0
        self._broker = broker
        self._bind_address = bind_address or ""
        self._listener = listener
        self._loop = loop
        self._abandoned = False
        self._waiting = 0
        self._heard_at_s = time.monotonic()
        self._farewell: Farewell | None = None
        self._client = self._build(client_id, will)
        self._thread = threading.Thread(target=self._run, name=f"mqtt-{client_id}", daemon=True)

    def start(self) -> None:
        """Begin to connect. The listener hears what comes of it."""
        self._thread.start()

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool = False) -> int:
        """Hand a message over; returns its id. For QoS 1 `acknowledged` follows unless the connection ends."""
        return self._client.publish(topic, payload, qos=qos, retain=retain).mid

    def subscribe(self, *topics: str) -> None:
        """Subscribe with QoS 1; retained messages come each time."""
        self._client.subscribe([(topic, SubscribeOptions(qos=1)) for topic in topics])

    def disconnect(self) -> None:
        """Say goodbye; the broker then keeps the will to itself."""
        self._client.disconnect()

    def silent_s(self) -> float:
        """For how long nothing has been heard from the broker."""
        return time.monotonic() - self._heard_at_s

    @property
    def alive(self) -> bool:
        """Whether the thread that serves the connection lives."""
        return self._thread.is_alive()

    def abandon(self) -> None:
        """Cut the connection without a word. Returns at once; the thread ends when its step does."""
        self._abandoned = True
        sock = self._client.socket()
        if isinstance(sock, socket.socket):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                log.debug("The abandoned connection was closed already")

    def join(self, time_out_s: float) -> None:
        """Wait for the thread's end. Blocks."""
        self._thread.join(time_out_s)

    # In the thread

    def _run(self) -> None:
        loop_s = min(_LOOP_S_MAX, self._broker.keepalive_s / _LOOPS_PER_KEEPALIVE)
        try:
            self._connect()
            # Nothing is sent before the loop runs, so an abandoned attempt cannot push out its successor.
            while not self._abandoned and self._client.loop(loop_s) == MQTTErrorCode.MQTT_ERR_SUCCESS:
                pass
        except Exception as error:  # noqa: BLE001 - whatever it was, the publisher must learn that this thread ends
            # Without its traceback, which would keep the socket of a failed attempt open.
            error = error.with_traceback(None)
            self._farewell = self._farewell or Farewell(f"{type(error).__name__}: {error}", error=error)
        finally:
            self._close()
            self._post(self._listener.ended, self._farewell or Farewell("the connection was closed"))

    def _connect(self) -> None:
        broker = self._broker
        if broker.tls is not None:
            self._client.tls_set_context(_tls_context(broker.tls))
        if broker.username is not None:
            self._client.username_pw_set(broker.username, _password(broker.password_file))
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho leaves it untyped
        properties.SessionExpiryInterval = _SESSION_EXPIRY_S
        properties.MaximumPacketSize = PACKET_BYTES_MAX
        self._client.connect(
            broker.host,
            broker.port,
            keepalive=broker.keepalive_s,
            bind_address=self._bind_address,
            clean_start=False,  # True once, and mosquitto does not bring the session back after its restart
            properties=properties,
        )

    def _close(self) -> None:
        client = self._client
        sock = client.socket()
        if sock is not None:
            sock.close()
        # The callbacks hold this session, and it the client: without them it goes, and its sockets with it, at once.
        client.on_socket_open = client.on_socket_register_write = client.on_connect = client.on_publish = None
        client.on_subscribe = client.on_message = client.on_disconnect = client.on_log = None

    def _build(self, client_id: str, will: Will) -> mqtt.Client:
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id, protocol=mqtt.MQTTv5, reconnect_on_failure=False)
        client.connect_timeout = _CONNECT_TIME_OUT_S
        client.suppress_exceptions = True
        client.max_inflight_messages_set(INFLIGHT_MAX)
        properties = Properties(PacketTypes.WILLMESSAGE)  # type: ignore[no-untyped-call]  # as above
        properties.WillDelayInterval = will.delay_s
        client.will_set(will.topic, will.payload, qos=1, retain=True, properties=properties)
        client.on_socket_open = _guarded(self._socket_opened)
        # With a callback here paho leaves all writing to the thread instead of writing in the caller's.
        client.on_socket_register_write = _guarded(_do_nothing)
        client.on_connect = _guarded(self._connected)
        client.on_publish = _guarded(self._published)
        client.on_subscribe = _guarded(self._subscribed)
        client.on_message = _guarded(self._message_came)
        client.on_disconnect = _guarded(self._disconnected)
        client.on_log = _guarded(self._logged)
        return client

    def _socket_opened(self, _client: mqtt.Client, _userdata: Any, sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _TCP_PROBE_PERIOD_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _TCP_PROBE_PERIOD_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _TCP_PROBES)
        # RFC 5482: give up on data that nobody confirms, before paho's own two keepalives are over.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 2 * self._broker.keepalive_s * 1000)

    def _connected(
        self, client: mqtt.Client, _userdata: Any, flags: mqtt.ConnectFlags, reason: ReasonCode, properties: Properties
    ) -> None:
        self._hear()
        if reason.is_failure:
            self._farewell = Farewell(str(reason), by_word=True, refused=True)
            return
        welcome = Welcome(
            session_present=flags.session_present,
            inflight_max=min(INFLIGHT_MAX, getattr(properties, "ReceiveMaximum", _RECEIVE_MAXIMUM_DEFAULT)),
            packet_bytes_max=min(PACKET_BYTES_MAX, getattr(properties, "MaximumPacketSize", PACKET_BYTES_MAX)),
            keepalive_s=client.keepalive,
        )
        self._post(self._listener.welcomed, welcome)

    def _published(
        self, _client: mqtt.Client, _userdata: Any, message_id: int, reason: ReasonCode, _properties: Properties
    ) -> None:
        self._hear()
        # 0x10: the broker has nobody to give it to, and has thrown it away.
        accepted = not reason.is_failure and reason.value != _NO_SUBSCRIBERS
        self._post(self._listener.acknowledged, message_id, None if accepted else str(reason))

    def _subscribed(
        self, _client: mqtt.Client, _userdata: Any, _id: int, reasons: list[ReasonCode], _properties: Properties
    ) -> None:
        self._hear()
        for reason in reasons:
            if reason.is_failure:
                log.warning("The broker refused a subscription: %s; check the probe's rights there", reason)

    def _message_came(self, _client: mqtt.Client, _userdata: Any, message: mqtt.MQTTMessage) -> None:
        self._hear()
        if self._waiting >= _HEARD_MAX:
            self.dropped_messages += 1
            return
        self._waiting += 1
        self._post(self._hand_over, message.topic, bytes(message.payload))

    def _disconnected(
        self,
        _client: mqtt.Client,
        _userdata: Any,
        flags: mqtt.DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties,
    ) -> None:
        if self._farewell is None:
            self._farewell = Farewell(str(reason), by_word=flags.is_disconnect_packet_from_server)

    def _logged(self, _client: mqtt.Client, _userdata: Any, _level: int, text: str) -> None:
        # paho has no callback for an answered ping.
        if text == _PINGRESP_LOG:
            self._hear()

    def _hear(self) -> None:
        self._heard_at_s = time.monotonic()

    def _post(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(call, self, *arguments)
        except RuntimeError:
            log.debug("The event loop is closed; what the broker said is of no more use")

    # In the loop

    def _hand_over(self, _session: Session, topic: str, payload: bytes) -> None:
        self._waiting -= 1
        self._listener.heard(self, topic, payload)


def _do_nothing(*_: Any) -> None:
    """A callback that only has to be there."""


def _guarded(call: Callable[..., None]) -> Callable[..., None]:
    """Keep a callback's exception from paho: it would end the thread while the client looks connected."""

    def guarded(*arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception:
            log.exception("A callback of the MQTT client failed")

    return guarded


class _ClosingSocket(ssl.SSLSocket):
    """Closes itself when the handshake fails: paho forgets the socket then, and a broken broker is tried for months."""

    def do_handshake(self, block: bool = False) -> None:
        """Shake hands, or close."""
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


def _tls_context(tls: config.Tls) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=tls.ca_file)
    context.sslsocket_class = _ClosingSocket
    # Python 3.13 checks so by default. A certificate that fails must fail on the first day, not when the fleet's
    # Python is upgraded.
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    if tls.cert_file is not None:
        context.load_cert_chain(tls.cert_file, tls.key_file)
    return context


def _password(path: str | None) -> str | None:
    return None if path is None else Path(path).read_text(encoding="utf-8").strip()


# What a person can do about an error, the more particular first.
_REMEDIES: Final[tuple[tuple[type[Exception], str], ...]] = (
    (
        ssl.SSLCertVerificationError,
        "check broker.tls.ca_file, the broker's certificate (RFC 5280, strictly) and this device's clock",
    ),
    (ssl.SSLError, "check broker.tls, and that this port speaks TLS"),
    (FileNotFoundError, "check the files named in [broker]"),
    (PermissionError, "check the rights of the files named in [broker]"),
    (socket.gaierror, "check broker.host, and the DNS of this host"),
    (UnicodeError, "check broker.host"),
)


def remedy(farewell: Farewell, broker: config.Broker) -> str:
    """What a person can do about a connection that could not be made; empty where waiting is the remedy."""
    if farewell.refused:
        return "check username and password_file, or that the certificate's CN is this agent's id"
    if farewell.error is None and broker.tls is not None:
        return "a broker that refuses a certificate often says nothing: check broker.tls.cert_file and its end date"
    return next((text for kind, text in _REMEDIES if isinstance(farewell.error, kind)), "")
