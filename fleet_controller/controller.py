"""The controller: ingest ─► validate ─► store ─► receipt, and what is invalid ─► quarantine."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fleet_controller.config import ControllerConfig
from fleet_controller.errors import ControllerError, QuarantineError
from fleet_controller.fleet.load import load_fleet
from fleet_controller.ingest.client import MqttIngest
from fleet_controller.instruct import instructions_for
from fleet_controller.patience import Patience
from fleet_controller.quarantine import Quarantine
from fleet_controller.receipts import ReceiptBook
from fleet_controller.records import Incoming, Rejected, Verdict
from fleet_controller.store.database import Store
from fleet_controller.validate import Validator, refused
from probe.messages import encode, shard_of, topic
from probe.tasks import TASKS
from probe.tasks.base import AnyTask

_LOG = logging.getLogger(__name__)
_SUMMARY_PERIOD_S: Final = 60.0
_TICK_S: Final = 0.2
# How often the fleet file is looked at: an operator who changed it does not wait for longer.
_FLEET_FILE_PERIOD_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Counters:
    """What the controller did since it started.

    `duplicates` are results that had been taken before; `lost` are numbers that their agent gave up before they
    came (holes); `unkept` could not be quarantined and were not receipted. `lag_s` is how old the newest stored
    result is, absent before the first.
    """

    received_messages: int
    stored: int
    quarantined: int
    unkept: int
    duplicates: int
    lost: int
    receipts: int
    shed_messages: int
    stale_acks: int
    waiting_messages: int
    connections: int
    lag_s: float | None
    trouble: str | None


class Controller:
    """All stages, joined.

    Args:
        config: where everything is.
        tasks: the kinds of results there are.

    Raises:
        ControllerError: the fleet file, a secret or the quarantine cannot be read, or a task cannot be stored.
    """

    def __init__(self, config: ControllerConfig, tasks: Mapping[str, AnyTask] = TASKS) -> None:
        self._config, self._tasks = config, tasks
        self._stopping = threading.Event()
        self._patience = Patience(self._stopping)
        self._fleet_stamp = self._seen_stamp = _stamp(config.fleet_file)
        self._fleet = load_fleet(config.fleet_file, tasks)
        self._validator = Validator(self._fleet, tasks)
        self._store = Store(config.influxdb, tasks, config.batch.max_points)
        self._quarantine = Quarantine(config.quarantine_dir, config.quarantine)
        self._receipts = ReceiptBook()
        self._ingest = MqttIngest(config.broker, config.batch, config.shards, self._publish_instructions)
        self._ingest.on_batch(self._take)
        self._stored = self._quarantined = self._receipts_sent = 0
        self._newest_unix_ns = self._unkept = 0
        self._quarantine_failed = False

    @property
    def ready(self) -> threading.Event:
        """Set once the broker has confirmed the subscription to reports."""
        return self._ingest.ready

    def start(self) -> None:
        """Begin to take in what the agents report."""
        self._ingest.start()

    def stop(self) -> None:
        """Finish or give back what is in hand, disconnect, close. The broker keeps what was not acknowledged."""
        self._stopping.set()
        self._ingest.stop()
        self._store.close()
        self._quarantine.close()

    def reload_fleet(self) -> bool:
        """Read the fleet file again; a bad one changes nothing, and is told."""
        self._fleet_stamp = _stamp(self._config.fleet_file)
        try:
            self._fleet = load_fleet(self._config.fleet_file, self._tasks)
        except (ControllerError, OSError) as error:
            _LOG.error("fleet file was not taken, the old one stays in force: %s", error)
            return False
        self._validator.exchange_fleet(self._fleet)
        _LOG.info("fleet file was read again: %d probes", len(self._fleet.probes))
        return True

    def reload_changed_fleet(self) -> None:
        """Read the fleet file again if it was written since: a probe that is new in it is not a stranger for long."""
        stamp = _stamp(self._config.fleet_file)
        # Not in the middle of being written: it looks the same twice before it is read.
        settled, self._seen_stamp = stamp == self._seen_stamp, stamp
        if stamp != self._fleet_stamp and settled:
            self.reload_fleet()

    def counters(self) -> Counters:
        """What was done so far."""
        ingest, book = self._ingest, self._receipts
        newest = self._newest_unix_ns
        return Counters(
            received_messages=ingest.received_messages,
            stored=self._stored,
            quarantined=self._quarantined,
            unkept=self._unkept,
            duplicates=book.duplicates,
            lost=book.lost,
            receipts=self._receipts_sent,
            shed_messages=ingest.shed_messages,
            stale_acks=ingest.stale_acks,
            waiting_messages=ingest.waiting_messages,
            connections=ingest.connections,
            lag_s=(time.time_ns() - newest) / 1e9 if newest else None,
            trouble=self._patience.trouble,
        )

    def _take(self, batch: Sequence[Incoming]) -> None:
        """One batch through all stages: receipts and acknowledgements only after everything in it is durable."""
        verdicts = [self._validator.validate(message.topic, message.payload) for message in batch]
        accepted = [one for verdict in verdicts for one in verdict.accepted]
        rejected = [one for verdict in verdicts for one in verdict.rejected]
        bad = self._patience.until_done(lambda: self._store.write(accepted))
        if bad is None:
            return
        self._stored += len(accepted) - len(bad)
        self._newest_unix_ns = max([self._newest_unix_ns, *(one.result.start_unix_ns for one in accepted)])
        if not self._set_apart([*rejected, *(refused(one.accepted, one.words) for one in bad)]):
            # Without a receipt a probe keeps what was not kept here, and reports it again.
            spoiled = {id(one.accepted) for one in bad}
            verdicts = [verdict for verdict in verdicts if not _needs_quarantine(verdict, spoiled)]
        self._send_receipts(verdicts)
        self._ingest.ack(batch)

    def _set_apart(self, rejected: Sequence[Rejected]) -> bool:
        """Quarantine these; a disk that does not take them must not stop what is good. Says whether all are kept."""
        try:
            self._quarantine.add(rejected)
        except QuarantineError as error:
            self._unkept += len(rejected)
            if not self._quarantine_failed:
                _LOG.error("nothing can be quarantined, what should be stays with its probe: %s", error)
            self._quarantine_failed = True
            return False
        if self._quarantine_failed and rejected:
            _LOG.info("quarantine takes results again")
            self._quarantine_failed = False
        self._quarantined += len(rejected)
        return True

    def _send_receipts(self, verdicts: Sequence[Verdict]) -> None:
        receipts = self._receipts.take(verdict.taken for verdict in verdicts if verdict.taken is not None)
        for receipt in receipts:
            name = topic(receipt.agent_id, "receipt")
            self._ingest.send(name, encode(receipt), key=f"{name} {receipt.sequence_space}")
        self._receipts_sent += len(receipts)

    def _publish_instructions(self) -> None:
        """The broker may have lost its disk: without this, a probe installed today would never learn what to do."""
        if _stamp(self._config.fleet_file) != self._fleet_stamp:
            self.reload_fleet()
        owned = self._config.shards
        try:
            instructions = instructions_for(self._fleet)
        except ControllerError as error:
            _LOG.error("instructions were not published again: %s", error)
            return
        for agent_id, instruction in instructions.items():
            if owned is None or shard_of(agent_id) in owned:
                self._ingest.send(topic(agent_id, "instruction"), encode(instruction), retain=True)
        _LOG.info("instructions of %d probes were published again", len(self._fleet.probes))


def serve(
    config: ControllerConfig, stop: threading.Event | None = None, ready: Callable[[], object] | None = None
) -> None:
    """Take in what the agents report until SIGTERM or SIGINT (or `stop`). SIGHUP reads the fleet file again.

    Args:
        config: where everything is.
        stop: ends it when set; for callers that are not a process of their own.
        ready: called once the broker has confirmed the subscription.

    Raises:
        ControllerError: it cannot start: the fleet file, a secret or the quarantine cannot be read.
    """
    stop = stop if stop is not None else threading.Event()
    reload = threading.Event()
    controller = Controller(config)
    with _signals(stop, reload):
        controller.start()
        try:
            _run(controller, stop, reload, ready)
        finally:
            controller.stop()
            _LOG.info("controller was stopped: %s", controller.counters())


def _run(
    controller: Controller, stop: threading.Event, reload: threading.Event, ready: Callable[[], object] | None
) -> None:
    next_summary_s = time.monotonic() + _SUMMARY_PERIOD_S
    next_look_s = time.monotonic() + _FLEET_FILE_PERIOD_S
    while not stop.wait(_TICK_S):
        if ready is not None and controller.ready.is_set():
            ready()
            ready = None
        if reload.is_set():
            reload.clear()
            controller.reload_fleet()
        if time.monotonic() >= next_look_s:
            next_look_s = time.monotonic() + _FLEET_FILE_PERIOD_S
            controller.reload_changed_fleet()
        if time.monotonic() >= next_summary_s:
            next_summary_s += _SUMMARY_PERIOD_S
            _LOG.info("%s", controller.counters())


def _needs_quarantine(verdict: Verdict, spoiled: set[int]) -> bool:
    return bool(verdict.rejected) or any(id(one) in spoiled for one in verdict.accepted)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is written or replaced; absent when there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


@contextmanager
def _signals(stop: threading.Event, reload: threading.Event) -> Iterator[None]:
    """Let signals set events, where this is the thread that Python gives signals to."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    wanted = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGHUP: reload}
    before: dict[signal.Signals, Any] = {}
    for number in wanted:
        before[number] = signal.signal(number, lambda number, _frame: wanted[signal.Signals(number)].set())
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
