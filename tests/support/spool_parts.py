"""A clock that stands still until told, and the results that the spool's tests store."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from probe import config
from probe.clock import NS_PER_S, Instant
from probe.messages import ClockReading, ClockState, NotRun, NotRunReason, Receipt, Result
from probe.spool.spool import Batch, Spool

BOOT_A, BOOT_B = "a" * 32, "b" * 32
WALL_NS = 1_800_000_000 * NS_PER_S
MIB = 1024 * 1024
# A disk that is never full.
ROOMY = 1 << 50
LIMITS = config.Spool()
SYNCHRONISED = ClockReading(state=ClockState.SYNCHRONISED, max_error_s=0.01)
UNSYNCHRONISED = ClockReading(state=ClockState.UNSYNCHRONISED)


@dataclass
class ManualClock:
    """Both clocks in nanoseconds, and what the kernel says of the wall clock."""

    wall: int = WALL_NS
    boottime: int = 1000 * NS_PER_S
    state: ClockReading = field(default_factory=lambda: SYNCHRONISED)

    def wall_ns(self) -> int:
        """The wall clock."""
        return self.wall

    def boottime_ns(self) -> int:
        """The boot-time clock."""
        return self.boottime

    def monotonic_s(self) -> float:
        """The monotonic clock."""
        return self.boottime / NS_PER_S

    def reading(self) -> ClockReading:
        """What the kernel says."""
        return self.state

    def pass_s(self, seconds: float) -> None:
        """Let time pass on both clocks."""
        self.wall += int(seconds * NS_PER_S)
        self.boottime += int(seconds * NS_PER_S)


def open_spool(path: Path, clock: ManualClock, *, boot: str = BOOT_A, limits: config.Spool = LIMITS) -> Spool:
    """A spool on a disk that is never full."""
    return Spool(path, limits, clock, boot, free_disk=lambda _: ROOMY)


def result(clock: ManualClock, number: int = 0, **changes: Any) -> Result:
    """A result with values, started now."""
    return Result(
        **{
            "task": "round_trip",
            "task_version": 1,
            "action": "delay",
            "schedule": "minutely",
            "start_unix_ns": clock.wall_ns(),
            "clock": clock.reading(),
            "link": "fixed",
            "peer": "hanoi",
            "values": {"number": number},
            **changes,
        }
    )


def draft(clock: ManualClock, **changes: Any) -> Result:
    """What is true if the power fails now."""
    not_run = NotRun(reason=NotRunReason.INTERRUPTED)
    return result(clock, values=None, not_run=not_run, **changes)


def add(spool: Spool, clock: ManualClock, number: int = 0, **changes: Any) -> int:
    """Store a finished result; returns its sequence."""
    return spool.add(result(clock, number, **changes), Instant.now(clock))


def batch_of(spool: Spool, results_max: int = 500, bytes_max: int = 200_000) -> Batch:
    """The oldest rows, which there are."""
    batch = spool.batch((), results_max, bytes_max)
    assert batch is not None
    return batch


def results_of(batch: Batch) -> list[Result]:
    """The decoded results of a batch."""
    return [msgspec.json.decode(bytes(entry.result), type=Result) for entry in batch.entries]


def sequences_of(batch: Batch) -> list[int]:
    """The numbers in a batch."""
    return [entry.sequence for entry in batch.entries]


def receipt(space: str, contiguous: int, *beyond: tuple[int, int]) -> Receipt:
    """The controller's word."""
    return Receipt(agent_id="probe-1", sequence_space=space, contiguous=contiguous, beyond=beyond)
