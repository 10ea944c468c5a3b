"""What the controller has to say to the broker: bounded, the newest word of each kind, few at a time inside paho."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final, NamedTuple

_LOG = logging.getLogger(__name__)
# paho ignores the broker's Receive Maximum and sends all it has at once after a reconnection. A broker may be set as
# low as 10 and cuts the connection of who exceeds it.
WINDOW: Final = 10
# A receipt for every agent of a large fleet and an instruction too. A lost receipt costs a repeat.
WAITING_MAX: Final = 50_000


class Outgoing(NamedTuple):
    """One message to publish."""

    key: str
    topic: str
    payload: bytes
    retain: bool


class Outbox:
    """Messages to publish, by key: a newer receipt says all that the older one said.

    `put` and `published` may be called from any thread; the others from one sending thread.

    Attributes:
        dropped: messages put out because too many waited.
        refused: messages that the broker did not accept.
    """

    def __init__(self, heartbeat_topic: str, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self.dropped = 0
        self.refused = 0
        self._heartbeat = Outgoing("", heartbeat_topic, b"", retain=False)
        self._monotonic_s = monotonic_s
        self._waiting: OrderedDict[str, Outgoing] = OrderedDict()
        self._in_flight: dict[int, Outgoing] = {}
        self._answered: deque[tuple[int, str | None]] = deque()
        self._changed = threading.Event()
        self._lock = threading.Lock()
        self._last_sent_s = monotonic_s()

    def put(self, topic: str, payload: bytes, *, key: str, retain: bool) -> None:
        """Have something published; it takes the place of what waits under the same key."""
        with self._lock:
            self._waiting[key] = Outgoing(key, topic, payload, retain)
            self._waiting.move_to_end(key)
            while len(self._waiting) > WAITING_MAX:
                self._waiting.popitem(last=False)
                self.dropped += 1
        self._changed.set()

    def published(self, mid: int, failure: str | None) -> None:
        """The broker answered a publication."""
        self._answered.append((mid, failure))
        self._changed.set()

    def wait(self, time_out_s: float) -> None:
        """Wait until there may be something to do."""
        self._changed.wait(time_out_s)
        self._changed.clear()

    def wake(self) -> None:
        """End a wait."""
        self._changed.set()

    def settle(self) -> bool:
        """Take note of the broker's answers; whether there were any."""
        any_answer = bool(self._answered)
        while self._answered:
            mid, failure = self._answered.popleft()
            message = self._in_flight.pop(mid, None)
            if message is not None and failure is not None and message is not self._heartbeat:
                self.refused += 1
                _LOG.warning("broker refused a message on %s: %s; look at its access list", message.topic, failure)
        return any_answer

    def next(self, heartbeat_after_s: float) -> Outgoing | None:
        """What to publish now: nothing while enough is on its way, a sign of life when all was quiet for long."""
        if len(self._in_flight) >= WINDOW:
            return None
        with self._lock:
            if self._waiting:
                return self._waiting.popitem(last=False)[1]
        if self._monotonic_s() - self._last_sent_s >= heartbeat_after_s:
            return self._heartbeat
        return None

    def sent(self, mid: int, message: Outgoing) -> None:
        """Note what the client has taken, by the number that the answer will bear."""
        self._last_sent_s = self._monotonic_s()
        self._in_flight[mid] = message

    def take_back(self) -> None:
        """The client is gone, and with it what it had not delivered: that waits again, unless newer words do."""
        with self._lock:
            for message in self._in_flight.values():
                if message is not self._heartbeat:
                    self._waiting.setdefault(message.key, message)
        self._in_flight.clear()
        self._answered.clear()
        self._last_sent_s = self._monotonic_s()
