"""Ingest: messages off the broker, acknowledged by hand and only after they are durable.

The rest of the controller sees a client of four methods (`start`, `stop`, `on_batch`, `ack`) and a way to send, so
that a faster one can take this one's place. This one is paho-mqtt: its thread does nothing but append; a thread of
ours makes batches of that and hands them on; another one sends, and watches that the first is alive.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from fleet_controller.config import BatchConfig, BrokerConfig
from fleet_controller.ingest.outbox import Outbox
from fleet_controller.ingest.session import Session
from fleet_controller.records import Incoming
from probe.messages import topic_filter

_LOG = logging.getLogger(__name__)
Handler = Callable[[Sequence[Incoming]], None]

# JSON becomes up to about four times as much line protocol; the database takes 25 MB at once.
_BATCH_BYTES_MAX: Final = 2 * 1024 * 1024
# How long the reading thread may stand still for a slow database. Far below the shortest keep-alive.
_READ_PAUSE_S: Final = 2.0
# A connection that paho calls up must show life this often, in keep-alives: it would need two to see it itself.
_LIVENESS_KEEPALIVES: Final = 3
# With no connection: longer than the longest wait between two attempts plus one attempt's own time-out.
_ATTEMPT_SILENCE_S: Final = 150.0
# Two controllers with one client id throw each other out, each time the other one connects.
_TAKEOVER_CONNECTIONS: Final = 6
_TAKEOVER_WINDOW_S: Final = 60.0
_TICK_S: Final = 0.5


class Ingest(Protocol):
    """Where messages come from."""

    def start(self) -> None:
        """Connect, and stay connected."""

    def stop(self) -> None:
        """Finish the batch in hand and disconnect; the broker keeps the session."""

    def on_batch(self, handler: Handler) -> None:
        """Say who takes the batches. It must not return before it has acknowledged, or given up for now."""

    def ack(self, messages: Sequence[Incoming]) -> None:
        """Tell the broker that these are durable."""


class MqttIngest:
    """The `Ingest` that ships.

    Args:
        broker: where to connect.
        batch: how much is taken together and how much may wait.
        shards: whose reports to take; absent: everybody's.
        on_session_lost: called (from a thread of this class) after a connection for which the broker had no session,
            so no retained messages either, perhaps.

    Attributes:
        ready: set once the broker has confirmed the subscription.
        received_messages: what came, repeats included.
        shed_messages: what was left with the broker because too much waited here; it comes again.
        stale_acks: acknowledgements not sent because their connection is gone; those messages come again.
        connections: how often it connected.
    """

    def __init__(
        self,
        broker: BrokerConfig,
        batch: BatchConfig,
        shards: Sequence[int] | None = None,
        on_session_lost: Callable[[], None] | None = None,
    ) -> None:
        self._filters = [topic_filter("report", shard) for shard in (shards if shards is not None else (None,))]
        self.ready = threading.Event()
        self.received_messages = self.shed_messages = self.stale_acks = self.connections = 0
        self._broker, self._batch = broker, batch
        self._on_session_lost = on_session_lost
        self._handler: Handler | None = None
        self._queue: deque[Incoming] = deque()
        self._queue_bytes = 0
        self._changed = threading.Condition()
        # Held for every acknowledgement and publication, and to change the epoch: none can slip onto a connection
        # that it is not for.
        self._connection_lock = threading.Lock()
        self._epoch = 0
        self._is_connected = False
        self._session_lost = False
        self._loss_level = logging.ERROR
        self._shedding = False
        self._resume = threading.Event()
        self._stopping = threading.Event()
        self._trouble = ""
        self._connected_at_s: deque[float] = deque(maxlen=_TAKEOVER_CONNECTIONS)
        self._last_life_s = time.monotonic()
        self._worker = threading.Thread(target=self._work, name="ingest-batches", daemon=True)
        self._watcher = threading.Thread(target=self._watch, name="ingest-sends", daemon=True)
        # Any QoS 1 publication is answered, subscribers or none: the answer is the proof of life.
        self.outbox = Outbox(heartbeat_topic=f"fleet/v1/controller/{broker.client_id}/heartbeat")
        self._session = Session(self, broker, self._filters)

    @property
    def waiting_messages(self) -> int:
        """How many messages wait in memory."""
        return len(self._queue)

    @property
    def is_connected(self) -> bool:
        """Whether the broker has accepted the connection and not ended it yet."""
        return self._is_connected

    def on_batch(self, handler: Handler) -> None:
        """Say who takes the batches."""
        self._handler = handler

    def start(self) -> None:
        """Connect, and stay connected."""
        self._worker.start()
        self._watcher.start()
        self._session.start()

    def stop(self) -> None:
        """Finish the batch in hand and disconnect; the broker keeps the session and what is not acknowledged."""
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()
        self.outbox.wake()
        for thread in (self._worker, self._watcher):
            if thread.is_alive():
                thread.join()
        self._send_what_may_be_sent()
        self._session.end()
        with self._connection_lock:
            self._is_connected = False

    def ack(self, messages: Sequence[Incoming]) -> None:
        """Tell the broker that these are durable, if they came over the connection that is up now."""
        with self._connection_lock:
            for message in messages:
                if not message.mid:
                    continue
                if self._is_connected and message.epoch == self._epoch:
                    self._session.client.ack(message.mid, 1)
                else:
                    self.stale_acks += 1

    def send(self, topic: str, payload: bytes, *, key: str | None = None, retain: bool = False) -> None:
        """Publish with QoS 1 as soon as the broker is there. A later message of the same `key` takes its place."""
        self.outbox.put(topic, payload, key=key or topic, retain=retain)

    # --- what the session reports, on paho's thread -------------------------------------------------------------

    def connected(self, session: Session, *, session_present: bool) -> None:
        """A connection is up: what came before it can no longer be acknowledged."""
        with self._connection_lock:
            if session is not self._session:
                return
            self._epoch += 1
            session.epoch = self._epoch
            self._is_connected, self._session_lost = True, not session_present
        self._shedding, self._trouble = False, ""
        self._note_life()
        self._note_connection()
        self.outbox.wake()

    def unreached(self, session: Session, reason: str) -> None:
        """Say once why the broker cannot be reached."""
        if session is self._session:
            self._note_life()
            if reason != self._trouble:
                self._trouble = reason
                _LOG.warning("broker at %s:%d was not reached: %s", self._broker.host, self._broker.port, reason)

    def disconnected(self, session: Session, reason: str) -> None:
        """The connection is gone, and with it the right to acknowledge what it brought."""
        with self._connection_lock:
            if session is not self._session:
                return
            was_connected, self._is_connected = self._is_connected, False
            self._epoch += 1
        self._note_life()
        if was_connected and not self._stopping.is_set():
            _LOG.warning("broker was lost: %s", reason)

    def subscribed(self, session: Session, refused: Sequence[str]) -> None:
        """The broker answered the subscription."""
        if refused:
            _LOG.error("broker refused the subscription to reports: %s; look at its access list", refused[0])
        elif session is self._session:
            self.ready.set()

    def received(self, session: Session, mid: int, topic: str, payload: bytes) -> None:
        """Keep a message for the next batch; leave it with the broker when too much waits already."""
        if session is not self._session:
            return
        self.received_messages += 1
        if self._shedding or not self._wait_for_room():
            # Not acknowledged, so the broker still has it; it is asked for again once the queue is empty.
            self.shed_messages += 1
            return
        with self._changed:
            # The session's own epoch: a session that was just replaced must not lend its messages the new one's.
            self._queue.append(Incoming(session.epoch, mid, topic, payload))
            self._queue_bytes += len(payload)
            if len(self._queue) in {1, self._batch.max_messages}:
                self._changed.notify_all()

    def published(self, session: Session, mid: int, failure: str | None) -> None:
        """Nothing but an append: paho holds a lock here that the sending thread may be waiting for."""
        if session is self._session:
            self.outbox.published(mid, failure)

    def _note_life(self) -> None:
        self._last_life_s = time.monotonic()

    def _note_connection(self) -> None:
        self.connections += 1
        self._connected_at_s.append(time.monotonic())
        _LOG.info("broker was reached at %s:%d", self._broker.host, self._broker.port)
        times = self._connected_at_s
        if len(times) == times.maxlen and times[-1] - times[0] < _TAKEOVER_WINDOW_S:
            _LOG.error(
                "connected %d times within a minute: does another controller use the client id %r?",
                len(times), self._broker.client_id,
            )  # fmt: skip
            times.clear()

    def _wait_for_room(self) -> bool:
        """Hold the reading thread for a moment: TCP then holds the broker. Starts to shed if that does not help."""
        if not self._is_full():
            return True
        with self._changed:
            self._changed.wait_for(lambda: not self._is_full() or self._stopping.is_set(), _READ_PAUSE_S)
            self._shedding = self._is_full()
        if self._shedding:
            _LOG.warning("memory bound was reached with %d messages: the broker keeps the rest", len(self._queue))
        return not self._shedding

    def _is_full(self) -> bool:
        return len(self._queue) >= self._batch.max_held_messages or self._queue_bytes >= self._batch.max_held_bytes

    # --- the batches --------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while not self._stopping.is_set():
            batch = self._next_batch()
            if batch:
                self._hand_on(batch)
            elif self._shedding and not self._stopping.is_set():
                self._resume.set()
                self.outbox.wake()

    def _next_batch(self) -> list[Incoming]:
        """Wait for a first message, then a little for more; empty after a while without any."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._queue or self._stopping.is_set(), _TICK_S):
                return []
            full = self._batch.max_messages
            self._changed.wait_for(lambda: len(self._queue) >= full or self._stopping.is_set(), self._batch.max_wait_s)
            return self._take_from_queue()

    def _take_from_queue(self) -> list[Incoming]:
        batch: list[Incoming] = []
        size = 0
        with self._changed:
            while self._queue and len(batch) < self._batch.max_messages and size < _BATCH_BYTES_MAX:
                message = self._queue.popleft()
                size += len(message.payload)
                batch.append(message)
            self._queue_bytes -= size
            self._changed.notify_all()
        return batch

    def _hand_on(self, batch: Sequence[Incoming]) -> None:
        """Give a batch to who takes them. A fault there costs time, never a message: none was acknowledged."""
        level = logging.ERROR
        while not self._stopping.is_set():
            try:
                if self._handler is not None:
                    self._handler(batch)
            except Exception:  # noqa: BLE001 - this thread must not end while messages come
                words = "handling a batch of %d messages failed; it is tried again until it succeeds"
                _LOG.log(level, words, len(batch), exc_info=True)
                level = logging.DEBUG  # a person has been told, and it may go on for a night
                self._stopping.wait(1.0)
            else:
                return

    # --- sending, and the watch ---------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._stopping.is_set():
            self.outbox.wait(_TICK_S)
            try:
                self._send_what_may_be_sent()
                self._check_life()
                self._tell_session_lost()
            except Exception:  # noqa: BLE001 - this thread must not end while there is something to watch
                _LOG.exception("sending to the broker failed; it will be tried again")
                self._stopping.wait(1.0)

    def _send_what_may_be_sent(self) -> None:
        while True:
            with self._connection_lock:
                if self.outbox.settle():
                    self._note_life()
                message = self.outbox.next(self._broker.keepalive_s / 2) if self._is_connected else None
                if message is None:
                    return
                info = self._session.client.publish(message.topic, message.payload, qos=1, retain=message.retain)
                self.outbox.sent(info.mid, message)

    def _check_life(self) -> None:
        """Replace a client whose thread died or hangs (paho calls it connected for ever), or that must start anew."""
        allowed_s = _LIVENESS_KEEPALIVES * self._broker.keepalive_s if self._is_connected else _ATTEMPT_SILENCE_S
        silence_s = time.monotonic() - self._last_life_s
        if silence_s > allowed_s:
            _LOG.error("MQTT client showed no life for %.0f s: starting a new one", silence_s)
            self._replace_session()
        elif self._resume.is_set():
            _LOG.info("queue was drained: asking the broker for what it kept")
            self._replace_session()

    def _replace_session(self) -> None:
        """Connect anew with another client object: the broker sends again what it has no acknowledgement for."""
        session = Session(self, self._broker, self._filters)
        with self._connection_lock:
            old, self._session = self._session, session
            self._is_connected = False
            self._epoch += 1
            self.outbox.take_back()
        self._resume.clear()
        self._note_life()
        old.abandon()
        session.start()

    def _tell_session_lost(self) -> None:
        if not self._session_lost or not self._is_connected:
            return
        self._session_lost = False
        if self._loss_level == logging.ERROR:
            _LOG.info("broker had no session of this controller: its retained messages may be gone too")
        try:
            if self._on_session_lost is not None:
                self._on_session_lost()
        except Exception:  # noqa: BLE001 - this thread must not end while there is something to watch
            self._session_lost = True  # nobody has heard of it yet
            _LOG.log(
                self._loss_level, "acting on a lost session failed; it is tried again until it succeeds", exc_info=True
            )
            self._loss_level = logging.DEBUG  # a person has been told, and it may go on for a night
            self._stopping.wait(1.0)
        else:
            self._loss_level = logging.ERROR
