"""One paho client and its callbacks: they note what happened and return, because an exception or a wait in one of
them would end the network thread while the client goes on to call itself connected.
"""  # noqa: D205 - one sentence

from __future__ import annotations

import logging
import random
import socket
import threading
from collections.abc import Sequence
from typing import Any, Final, Protocol

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from fleet_controller.config import BrokerConfig, read_secret
from fleet_controller.tls import tls_context

_LOG = logging.getLogger(__name__)
# A broker keeps what came for us this long while we are away: longer than any repair.
SESSION_EXPIRY_S: Final = 60 * 86_400
# At least rate times the time to store: 8,000 messages/s x 0.25 s = 2,000, twice.
RECEIVE_MAXIMUM: Final = 4000
_RECONNECT_MIN_S: Final = 1
# One controller is no herd: it is back within half a minute; the spread keeps several from knocking in step.
_RECONNECT_MAX_S: Final = (15, 30)
_TCP_USER_TIMEOUT_MS: Final = 30_000  # a half-open connection fails at the next send, not after the kernel's 15 minutes
_END_WAIT_S: Final = 3.0


class Listener(Protocol):
    """Who is told. Every call comes on paho's thread and must return at once."""

    def connected(self, session: Session, *, session_present: bool) -> None:
        """A connection is up."""

    def unreached(self, session: Session, reason: str) -> None:
        """An attempt to connect failed, or the broker refused it."""

    def disconnected(self, session: Session, reason: str) -> None:
        """The connection is gone."""

    def subscribed(self, session: Session, refused: Sequence[str]) -> None:
        """The broker answered the subscription; `refused` has its words for each filter that it refused."""

    def received(self, session: Session, mid: int, topic: str, payload: bytes) -> None:
        """A message came; `mid` is 0 for one that nobody may acknowledge."""

    def published(self, session: Session, mid: int, failure: str | None) -> None:
        """The broker answered a publication. paho holds its own locks during this call."""


class Session:
    """One client object, connecting until it is ended. Its durable session at the broker outlives it.

    Attributes:
        client: paho's.
        epoch: which connection this is, counted by the listener, which sets it.
    """

    def __init__(self, listener: Listener, config: BrokerConfig, filters: Sequence[str]) -> None:
        self.epoch = 0
        self._listener = listener
        self._filters = list(filters)
        self.client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=config.client_id,
            protocol=MQTTProtocolVersion.MQTTv5,
            manual_ack=True,
        )
        # Below our own guards: what still escapes is logged by paho and does not end its thread.
        self.client.suppress_exceptions = True
        spread_s = random.randint(*_RECONNECT_MAX_S)  # noqa: S311 - a spread, not a secret
        self.client.reconnect_delay_set(_RECONNECT_MIN_S, spread_s)
        self._authenticate(config)
        self._listen()
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho ships no type for it
        properties.SessionExpiryInterval = SESSION_EXPIRY_S
        properties.ReceiveMaximum = RECEIVE_MAXIMUM
        # clean_start stays False for ever: one connection without it and the broker has dropped what waits.
        self.client.connect_async(
            config.host, config.port, keepalive=config.keepalive_s, clean_start=False, properties=properties
        )

    def start(self) -> None:
        """Begin to connect."""
        self.client.loop_start()

    def end(self) -> None:
        """Send what is queued, disconnect and keep the session. Bounded: paho's thread may hang."""
        self.client.disconnect()
        stopper = threading.Thread(target=self.client.loop_stop, name="mqtt-stop", daemon=True)
        stopper.start()
        stopper.join(_END_WAIT_S)

    def abandon(self) -> None:
        """Give up a client whose thread may be dead: hang up, wait for nothing."""
        sock = self.client.socket()
        self.client.disconnect()
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)  # type: ignore[attr-defined]  # paho types it by what it uses itself
            except OSError as error:
                _LOG.debug("socket of the abandoned client was closed already: %s", error)

    def _authenticate(self, config: BrokerConfig) -> None:
        if config.username is not None:
            password = read_secret(config.password_file) if config.password_file is not None else None
            self.client.username_pw_set(config.username, password)
        if config.tls is not None:
            self.client.tls_set_context(tls_context(config.tls))

    def _listen(self) -> None:
        self.client.on_connect = self._on_connect
        self.client.on_connect_fail = self._on_connect_fail
        self.client.on_disconnect = self._on_disconnect
        self.client.on_message = self._on_message
        self.client.on_publish = self._on_publish
        self.client.on_subscribe = self._on_subscribe
        self.client.on_socket_open = self._on_socket_open

    def _on_connect(
        self, client: Client, _data: Any, flags: ConnectFlags, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        if reason.is_failure:
            self._listener.unreached(self, f"refused: {reason}")
            return
        self._listener.connected(self, session_present=flags.session_present)
        # On every connection: a session that the broker lost has no subscription, and a repeat costs nothing.
        # A report that somebody retained by mistake must not come again each time.
        options = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND)
        client.subscribe([(name, options) for name in self._filters])

    def _on_connect_fail(self, _client: Client, _data: Any) -> None:
        self._listener.unreached(self, "no connection")

    def _on_disconnect(
        self, _client: Client, _data: Any, _flags: DisconnectFlags, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        self._listener.disconnected(self, str(reason))

    def _on_subscribe(
        self, _client: Client, _data: Any, _mid: int, reasons: list[ReasonCode], _properties: Properties | None
    ) -> None:
        self._listener.subscribed(self, [str(reason) for reason in reasons if reason.is_failure])

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = "(a topic that is not UTF-8)"
        self._listener.received(self, message.mid if message.qos else 0, topic, bytes(message.payload))

    def _on_publish(
        self, _client: Client, _data: Any, mid: int, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        self._listener.published(self, mid, str(reason) if reason.is_failure else None)

    def _on_socket_open(self, _client: Client, _data: Any, sock: Any) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _TCP_USER_TIMEOUT_MS)
