"""Time: what the wall says, what passed, and whether the wall can be trusted.

A Raspberry Pi has no battery-backed clock. Durations come from the monotonic clock, timestamps from the wall clock,
and the boot-time clock (it goes on in suspend) links the two when the wall clock was wrong at the time.
"""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from probe.messages import ClockReading, ClockState

NS_PER_S = 1_000_000_000
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_STA_UNSYNC = 0x0040  # linux/timex.h
_TIME_ERROR = 5  # linux/timex.h
# The kernel counts `maxerror` up to 16 s and calls the clock unsynchronised there (NTP_PHASE_LIMIT).
_MAX_ERROR_US = 16_000_000


class Clock(Protocol):
    """What the stages ask of time; a test passes its own."""

    def wall_ns(self) -> int:
        """Nanoseconds since 1970-01-01 UTC."""

    def boottime_ns(self) -> int:
        """Nanoseconds since boot, suspended time included; never steps."""

    def monotonic_s(self) -> float:
        """Seconds of the monotonic clock, for time-outs."""

    def reading(self) -> ClockReading:
        """Whether the wall clock can be trusted now."""


class _Timeval(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_usec", ctypes.c_long))


class _Timex(ctypes.Structure):
    """`struct timex` of linux/timex.h."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("constant", ctypes.c_long),
        ("precision", ctypes.c_long),
        ("tolerance", ctypes.c_long),
        ("time", _Timeval),
        ("tick", ctypes.c_long),
        ("ppsfreq", ctypes.c_long),
        ("jitter", ctypes.c_long),
        ("shift", ctypes.c_int),
        ("stabil", ctypes.c_long),
        ("jitcnt", ctypes.c_long),
        ("calcnt", ctypes.c_long),
        ("errcnt", ctypes.c_long),
        ("stbcnt", ctypes.c_long),
        ("tai", ctypes.c_int),
        ("padding", ctypes.c_int * 11),
    )


_LIBC = ctypes.CDLL(None, use_errno=True)


class SystemClock:
    """The clocks of this host."""

    def wall_ns(self) -> int:
        """Nanoseconds since 1970-01-01 UTC."""
        return time.time_ns()

    def boottime_ns(self) -> int:
        """Nanoseconds since boot, suspended time included; never steps."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def monotonic_s(self) -> float:
        """Seconds of the monotonic clock, for time-outs."""
        return time.monotonic()

    def reading(self) -> ClockReading:
        """Ask the kernel (adjtimex, read only), whichever daemon steers it."""
        timex = _Timex()
        state = int(_LIBC.adjtimex(ctypes.byref(timex)))
        trusted = state not in {-1, _TIME_ERROR} and not timex.status & _STA_UNSYNC
        bounded = 0 <= timex.maxerror < _MAX_ERROR_US
        return ClockReading(
            state=ClockState.SYNCHRONISED if trusted else ClockState.UNSYNCHRONISED,
            max_error_s=timex.maxerror / 1e6 if trusted and bounded else None,
        )


@dataclass(frozen=True, slots=True)
class Instant:
    """One moment on both clocks, taken together."""

    wall_ns: int
    boottime_ns: int

    @classmethod
    def now(cls, clock: Clock) -> Instant:
        """This moment."""
        return cls(wall_ns=clock.wall_ns(), boottime_ns=clock.boottime_ns())

    def seconds_since(self, earlier: Instant) -> float:
        """How long after `earlier`, whatever the wall clock did meanwhile."""
        return (self.boottime_ns - earlier.boottime_ns) / NS_PER_S


def boot_id() -> str:
    """The kernel's id of this boot: 32 hexadecimal digits."""
    return _BOOT_ID.read_text(encoding="ascii").strip().replace("-", "")
