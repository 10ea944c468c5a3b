"""The spool's ceilings: age, bytes, free disk. What is oldest goes first, and is counted by cause."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from probe import config
from probe.clock import NS_PER_S, Clock
from probe.messages import ClockState
from probe.spool.file import SpoolFile

log = logging.getLogger(__name__)

# Rows dropped at once to make room; few, so that no more is lost than must be.
_DROPPED_AT_ONCE: Final = 64
# However full the disk is, this much of the newest stays: it is mostly not the spool that fills a disk.
_KEPT_BYTES_MIN: Final = 1024 * 1024


class Ceilings:
    """Drops what the limits do not allow. Each method works inside the caller's transaction."""

    def __init__(self, limits: config.Spool, clock: Clock, boot_id: str, free_disk: Callable[[Path], int]) -> None:
        self._limits = limits
        self._clock = clock
        self._boot = boot_id
        self._free_disk = free_disk
        self._told: set[str] = set()

    def keep_size(self, file: SpoolFile) -> None:
        """Drop what is over the bytes allowed, and as much as the disk misses of its free space."""
        self._drop_down_to(file, self._limits.max_bytes, "dropped_bytes")
        missing = self._limits.min_free_disk_bytes - self._free_disk(file.path.parent)
        if missing > 0:
            # Of the whole file: pages that are free already go back to the disk, or take what comes next.
            self._drop_down_to(file, max(file.file_bytes() - missing, _KEPT_BYTES_MIN), "dropped_disk")

    def keep_age(self, file: SpoolFile) -> None:
        """Drop by age: within this boot by the boot-time clock, else by verified wall time only."""
        age_ns = int(self._limits.max_age_s * NS_PER_S)
        dropped = file.change(
            "DELETE FROM results WHERE boot = ? AND boottime_ns < ?", (self._boot, self._clock.boottime_ns() - age_ns)
        )
        if self._clock.reading().state is ClockState.SYNCHRONISED:
            dropped += self._drop_old_of_earlier_boots(file, self._clock.wall_ns(), age_ns)
        self._report(file, "dropped_age", dropped)

    def make_room(self, file: SpoolFile) -> None:
        """Drop some of the oldest: the disk is full."""
        file.execute("DELETE FROM set_aside")
        self._report(file, "dropped_disk", self._drop_oldest(file))

    def _drop_old_of_earlier_boots(self, file: SpoolFile, wall_ns: int, age_ns: int) -> int:
        # A row that no clock vouched for is at least as old as the first verified time at which it is seen here.
        file.execute(
            "UPDATE results SET verified_unix_ns = ? WHERE verified_unix_ns IS NULL AND boot != ?",
            (wall_ns, self._boot),
        )
        return file.change(
            "DELETE FROM results WHERE boot != ? AND verified_unix_ns < ?", (self._boot, wall_ns - age_ns)
        )

    def _drop_down_to(self, file: SpoolFile, ceiling_bytes: int, cause: str) -> None:
        if file.used_bytes() <= ceiling_bytes:
            return
        file.execute("DELETE FROM set_aside")  # counted when they were set aside
        dropped = 0
        while file.used_bytes() > ceiling_bytes:
            gone = self._drop_oldest(file)
            if gone == 0:
                break
            dropped += gone
        self._report(file, cause, dropped)

    def _drop_oldest(self, file: SpoolFile) -> int:
        return file.change(
            "DELETE FROM results WHERE position IN (SELECT position FROM results ORDER BY position LIMIT ?)",
            (_DROPPED_AT_ONCE,),
        )

    def _report(self, file: SpoolFile, cause: str, dropped: int) -> None:
        if dropped == 0:
            return
        file.count(cause, dropped)
        if cause not in self._told:
            self._told.add(cause)
            log.warning("Dropped %d of the oldest results unsent (%s); the count goes on in the status", dropped, cause)
