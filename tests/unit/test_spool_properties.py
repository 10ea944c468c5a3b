from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from spool_parts import (
    BOOT_A,
    BOOT_B,
    MIB,
    SYNCHRONISED,
    UNSYNCHRONISED,
    ManualClock,
    draft,
    open_spool,
    receipt,
    result,
    results_of,
)

from probe import config
from probe.clock import Instant
from probe.spool.spool import Batch, Spool

# Results of these sizes reach the ceiling of one MiB within the steps of one example.
SIZES = st.sampled_from([10, 10, 30_000, 120_000])


class SpoolMachine(RuleBasedStateMachine):
    """Each finished result is kept until receipted, or counted as dropped; no number is given twice."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="spool"))
        self.path = self.folder / "spool.db"
        self.clock = ManualClock()
        self.boot = BOOT_A
        self.limits = config.Spool(max_bytes=MIB, max_age_s=3600.0)
        self.running: list[int] = []
        self.finished = 0
        self.settled = 0
        self.given: set[tuple[str, int]] = set()
        self.sent: dict[tuple[str, int], bytes] = {}
        self.spool: Spool = open_spool(self.path, self.clock, limits=self.limits)

    @initialize(synchronised=st.booleans())
    def begin_life(self, *, synchronised: bool) -> None:
        """Some probes know the time from the start."""
        self.clock.state = SYNCHRONISED if synchronised else UNSYNCHRONISED

    @rule(seconds=st.integers(0, 1200), step_s=st.integers(-100, 100))
    def time_passes(self, seconds: int, step_s: int) -> None:
        """Both clocks go on; the wall clock may step."""
        self.clock.pass_s(seconds)
        self.clock.wall += step_s * 10**9

    @rule()
    def clock_is_set(self) -> None:
        """The time daemon did its work."""
        self.clock.state = SYNCHRONISED

    @rule()
    def begin(self) -> None:
        """A measurement starts."""
        self.running.append(self.spool.begin(draft(self.clock), Instant.now(self.clock)))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), size=SIZES)
    def finish(self, data: st.DataObject, size: int) -> None:
        """A measurement ends."""
        row = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.note(self.spool.finish(row, result(self.clock, values={"text": "x" * size})))

    @rule(size=SIZES)
    def add(self, size: int) -> None:
        """A result without a running phase."""
        body = result(self.clock, values={"text": "x" * size})
        self.note(self.spool.add(body, Instant.now(self.clock)))

    @rule(results_max=st.integers(1, 5), data=st.data())
    def send_and_settle(self, results_max: int, data: st.DataObject) -> None:
        """A report goes out, and a receipt for some of it may come."""
        batch = self.spool.batch((), results_max, 200_000)
        if batch is None:
            return
        self.check_sent(batch)
        numbers = [entry.sequence for entry in batch.entries]
        upto = data.draw(st.integers(0, max(numbers)))
        self.settled += self.spool.settle(receipt(batch.space, upto))
        beyond = data.draw(st.sampled_from(numbers))
        self.settled += self.spool.settle(receipt(batch.space, 0, (beyond, beyond)))

    @rule()
    def enforce(self) -> None:
        """The agent's periodic call."""
        self.spool.enforce()

    @rule()
    def restart(self) -> None:
        """The agent is started again within one boot."""
        self.spool.close()
        self.reopen()

    @rule()
    def power_cut(self) -> None:
        """The power fails: what a copy of the files holds at this moment is what the next boot finds."""
        copy = self.folder / "copy"
        shutil.copytree(self.folder, copy, ignore=shutil.ignore_patterns("copy*", "*-shm"))
        self.spool.close()
        self.folder = copy
        self.path = copy / "spool.db"
        self.boot = BOOT_B if self.boot == BOOT_A else f"{len(str(copy)):032x}"
        self.clock.boottime = 10 * 10**9
        self.reopen()

    def reopen(self) -> None:
        """Open the file again; what was open is a result now."""
        self.spool = open_spool(self.path, self.clock, boot=self.boot, limits=self.limits)
        assert self.spool.recovered == len(self.running)
        self.finished += len(self.running)
        self.running.clear()

    def note(self, sequence: int) -> None:
        """A number was given."""
        self.finished += 1
        assert (self.spool.space, sequence) not in self.given
        self.given.add((self.spool.space, sequence))

    def check_sent(self, batch: Batch) -> None:
        """What was sent once is sent the same again, in order, from the floor on, and starts are unique."""
        numbers = [entry.sequence for entry in batch.entries]
        assert numbers == sorted(set(numbers))
        assert batch.floor == numbers[0]
        for entry in batch.entries:
            body = bytes(entry.result)
            assert self.sent.setdefault((batch.space, entry.sequence), body) == body
        starts = [found.start_unix_ns for found in results_of(batch)]
        assert len(set(starts)) == len(starts)

    @invariant()
    def nothing_is_lost(self) -> None:
        """Kept, receipted or counted."""
        status = self.spool.status()
        dropped = status.dropped_age + status.dropped_bytes + status.dropped_disk + status.set_aside
        assert status.results + self.settled + dropped == self.finished
        assert status.lost_writes == 0
        assert len([row for row in self.spool.rows(1000) if row.state == "running"]) == len(self.running)

    def teardown(self) -> None:
        """Leave no file."""
        self.spool.close()
        top = Path(*self.folder.parts[: len(Path(tempfile.gettempdir()).parts) + 1])
        shutil.rmtree(top)


TestSpool = SpoolMachine.TestCase
# Each step is a handful of durable writes; more examples would test the disk.
TestSpool.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
