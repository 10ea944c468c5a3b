"""A short conversation with the broker: read what it retains, publish a few messages, leave.

For the commands that a person types. The ingest has a session of its own, which lasts for ever.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from fleet_controller.config import BrokerConfig, read_secret
from fleet_controller.errors import BrokerError
from fleet_controller.tls import tls_context
from probe.messages import PACKET_BYTES_MAX, Leaf, topic_filter

# A person waits for the answer; a broker that needs longer is one to look at.
TIME_OUT_S: Final = 10.0
# Where the broker will not carry our end mark, so long a silence says that it has sent all that it retains.
_QUIET_S: Final = 0.3
# The same where it took the mark: then it comes, unless access rules hide it from us without a word.
_QUIET_AFTER_MARK_S: Final = 1.5
# Brokers may cut a client that has more unacknowledged messages out than they allow; none allows fewer.
_IN_FLIGHT_MAX: Final = 10


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to publish at QoS 1."""

    topic: str
    payload: bytes
    retain: bool = False
    expiry_s: int | None = None


class BrokerSession:
    """One connection, used from one thread inside a `with` block.

    Args:
        config: where the broker is and who we are there.
        purpose: a word for the client id, so that the broker's log says what the connection was for.
    """

    def __init__(self, config: BrokerConfig, purpose: str) -> None:
        self._config = config
        # Unlike the ingest's, this id must be new each time: a second one with the same id ends the first.
        self._client_id = f"{config.client_id}-{purpose}-{os.urandom(4).hex()}"
        self._changed = threading.Condition()
        self._connected: ReasonCode | None = None
        self._lost: str | None = None
        self._subscribed: list[ReasonCode] = []
        self._acknowledged: dict[int, ReasonCode] = {}
        self._retained: dict[str, bytes] = {}
        self._heard_s = 0.0
        self._ended = False
        self._client = self._make_client()

    def __enter__(self) -> Self:
        """Connect.

        Raises:
            BrokerError: there is no answer, or it says no.
        """
        self._client.connect_timeout = TIME_OUT_S
        try:
            self._client.connect(self._config.host, self._config.port, keepalive=30, clean_start=True)
        except (OSError, ValueError) as error:
            raise BrokerError(f"{self._place} cannot be reached: {error}") from None
        self._client.loop_start()
        try:
            self._wait(lambda: self._connected is not None, "did not answer the greeting")
        except BrokerError:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""
        self._leave()

    def retained(self, *leaves: Leaf) -> dict[str, bytes]:
        """What the broker retains of these kinds of messages of every agent, by topic.

        The broker sends what it retains before what is published later, so a message of our own marks the end.

        Raises:
            BrokerError: it refused the subscription, or did not come to an end in time.
        """
        mark = f"fleet/v1/session/{self._client_id}"
        wanted = [topic_filter(leaf) for leaf in leaves]
        self._retained, self._subscribed, self._ended = {}, [], False
        # At QoS 1, mosquitto drops in silence what exceeds max_queued_messages; at QoS 0 it writes to the socket.
        self._client.subscribe([(name, SubscribeOptions(qos=0)) for name in (*wanted, mark)])
        self._wait(lambda: bool(self._subscribed), "did not answer the subscription")
        refused = [str(code) for code in self._subscribed[: len(wanted)] if code.is_failure]
        if refused:
            raise BrokerError(f"{self._place} refused to show {', '.join(leaves)}: {refused[0]}")
        marked = self.publish([Outgoing(mark, b"end")])[0].value == 0
        quiet_s = _QUIET_AFTER_MARK_S if marked else _QUIET_S
        self._wait(lambda: self._ended or self._is_quiet(quiet_s), "went on and on")
        self._client.unsubscribe([*wanted, mark])
        return dict(self._retained)

    def publish(self, messages: Sequence[Outgoing]) -> list[ReasonCode]:
        """Publish, a few at a time, and wait for the broker's word on each. The words stand in the same order.

        Raises:
            BrokerError: the connection broke, or the broker was silent for too long.
        """
        numbers: list[int] = []
        for message in messages:
            waiting_for = numbers[-_IN_FLIGHT_MAX] if len(numbers) >= _IN_FLIGHT_MAX else None
            self._wait_for_acknowledgement(waiting_for)
            info = self._client.publish(
                message.topic, message.payload, qos=1, retain=message.retain, properties=_properties(message)
            )
            numbers.append(info.mid)
        for number in numbers:
            self._wait_for_acknowledgement(number)
        return [self._acknowledged[number] for number in numbers]

    @property
    def _place(self) -> str:
        return f"the broker {self._config.host}:{self._config.port}"

    def _make_client(self) -> mqtt.Client:
        client = mqtt.Client(CallbackAPIVersion.VERSION2, self._client_id, protocol=mqtt.MQTTv5)
        client.suppress_exceptions = True  # an exception in a callback would kill paho's thread in silence
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        if self._config.username is not None and self._config.password_file is not None:
            client.username_pw_set(self._config.username, read_secret(self._config.password_file))
        if self._config.tls is not None:
            client.tls_set_context(tls_context(self._config.tls))
        return client

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, code: ReasonCode, _properties: Any) -> None:
        with self._changed:
            self._connected = code
            if code.is_failure:
                self._lost = f"said no: {code}"
            self._changed.notify_all()

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, code: ReasonCode, _properties: Any) -> None:
        with self._changed:
            # paho would connect again; what was asked on this connection is lost all the same.
            self._lost = self._lost or f"closed the connection: {code}"
            self._changed.notify_all()

    def _on_subscribe(self, _client: Any, _data: Any, _mid: int, codes: list[ReasonCode], _properties: Any) -> None:
        with self._changed:
            self._subscribed = codes
            self._heard_s = time.monotonic()
            self._changed.notify_all()

    def _on_publish(self, _client: Any, _data: Any, mid: int, code: ReasonCode, _properties: Any) -> None:
        with self._changed:
            self._acknowledged[mid] = code
            self._changed.notify_all()

    def _on_message(self, _client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
        with self._changed:
            if message.topic.startswith("fleet/v1/session/"):
                self._ended = True
            elif message.retain:  # others are said in this moment, and go on for ever
                self._heard_s = time.monotonic()
                if len(message.payload) <= PACKET_BYTES_MAX:
                    self._retained[message.topic] = bytes(message.payload)
            self._changed.notify_all()

    def _is_quiet(self, long_s: float) -> bool:
        return time.monotonic() - self._heard_s > long_s

    def _wait_for_acknowledgement(self, number: int | None) -> None:
        self._wait(lambda: number is None or number in self._acknowledged, "did not acknowledge a message")

    def _wait(self, done: Any, problem: str) -> None:
        """Wait until `done()`, for at most `TIME_OUT_S`."""
        deadline = time.monotonic() + TIME_OUT_S
        with self._changed:
            while not done():
                if self._lost is not None:
                    raise BrokerError(f"{self._place} {self._lost}")
                if time.monotonic() > deadline:
                    raise BrokerError(f"{self._place} {problem} within {TIME_OUT_S:g} s")
                self._changed.wait(_QUIET_S / 3)
            if self._connected is not None and self._connected.is_failure:
                raise BrokerError(f"{self._place} {self._lost}")

    def _leave(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def _properties(message: Outgoing) -> Properties | None:
    if message.expiry_s is None:
        return None
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho leaves it untyped
    properties.MessageExpiryInterval = message.expiry_s
    return properties
