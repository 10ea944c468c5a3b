"""When a result in the spool really started: the correction of what was taken on a clock that nobody vouched for.

A Raspberry Pi wakes up with last week's time. The boot-time clock tells how long ago a result was taken, and the wall
clock, once verified, tells since when.
"""

from __future__ import annotations

from probe.clock import Clock
from probe.messages import ClockReading, ClockState
from probe.spool.file import SpoolFile


class ClockCorrection:
    """Knows, for this boot and for earlier ones, how the boot-time clock relates to the wall clock."""

    def __init__(self, clock: Clock, boot_id: str) -> None:
        self._clock = clock
        self._boot = boot_id

    def remember_offset(self, file: SpoolFile) -> None:
        """Keep this boot's offset once its clock is verified: the power may fail before its results are sent."""
        if file.execute("SELECT 1 FROM boots WHERE boot = ?", (self._boot,)):
            return
        if self._clock.reading().state is ClockState.SYNCHRONISED:
            file.execute("INSERT INTO boots VALUES (?, ?)", (self._boot, self._offset_ns()))

    def final_start(self, file: SpoolFile, boot: str, boottime_ns: int, start_unix_ns: int) -> tuple[int, ClockReading]:
        """When a result of an unverified clock started as far as can be known now, and who vouches for it."""
        if boot == self._boot:
            return self._offset_ns() + boottime_ns, self._reading_now()
        known = file.execute("SELECT offset_ns FROM boots WHERE boot = ?", (boot,))
        if known:
            return known[0][0] + boottime_ns, ClockReading(state=ClockState.CORRECTED)
        return start_unix_ns, ClockReading(state=ClockState.UNSYNCHRONISED)

    def _reading_now(self) -> ClockReading:
        now = self._clock.reading()
        if now.state is ClockState.SYNCHRONISED:
            return ClockReading(state=ClockState.CORRECTED, max_error_s=now.max_error_s)
        return ClockReading(state=ClockState.UNSYNCHRONISED)

    def _offset_ns(self) -> int:
        return self._clock.wall_ns() - self._clock.boottime_ns()
