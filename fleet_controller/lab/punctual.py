"""Being on time: real-time priority, and how long to sleep before the next departure."""

from __future__ import annotations

import ctypes
import gc
import os

# A shorter sleep is a busy wait at real-time priority, and the kernel halts such a process for 50 ms in each second.
_GRAIN_NS = 100_000
# From a packet's entry into the device to our reading of it, where no stamp tells; and from its moment to its arrival,
# by the kernel's stamps: half a turn of the loop, and the writing. So packets are delivered that much earlier.
READING_NS = 24_000
_WRITING_NS = 16_000
_OVERHEAD_NS = READING_NS + _WRITING_NS
# The same where departures are rounded to a grain.
_OVERHEAD_ROUNDED_NS = _OVERHEAD_NS + _GRAIN_NS // 2
# Waking up from a sleep is done within this, nearly always; on a virtual machine with a busy core 120 us are too short
# for one packet in ten.
_WAKE_NS = 200_000
# The time to stay awake before departures: one part in so many, and how much of it can be saved up. Meanwhile nothing
# else runs on this core: with 20 ms of it, a sender on the same core left a line of 100 Mbit/s empty for 11 ms.
_AWAKE_SHARE = 10
_AWAKE_NS_MAX = 2_000_000
_REALTIME_PRIORITY = 20
_PR_SET_TIMERSLACK = 29  # linux/prctl.h
_LIBC = ctypes.CDLL(None, use_errno=True)


class Patience:
    """How long to sleep before the next departure, so that it is on time and the process does not spin for ever.

    A sleep ends late by what waking up takes, some 50 microseconds on an idle virtual machine. So the last bit before
    a departure is spent awake, out of an allowance that is a tenth of the time, saved up to some ms. Sparse packets,
    with which delay is measured, leave on time; a bulk transfer uses the allowance up and is rounded to a grain.
    """

    def __init__(self, now_ns: int) -> None:
        self._allowance_ns = _AWAKE_NS_MAX
        self._at_ns = now_ns
        self._is_awake = False

    def early_ns(self) -> int:
        """How long before its moment a packet may be delivered."""
        return _OVERHEAD_NS if self._allowance_ns > 0 else _OVERHEAD_ROUNDED_NS

    def wait_ns(self, due_ns: int | None, now_ns: int) -> int | None:
        """How long to sleep before something that is due then; 0 is to look again at once.

        With nothing due it is None, for ever. It has to be asked then too: the time until the next call was slept.
        """
        passed_ns, self._at_ns = now_ns - self._at_ns, now_ns
        change_ns = -passed_ns if self._is_awake else passed_ns // _AWAKE_SHARE
        self._allowance_ns = min(self._allowance_ns + change_ns, _AWAKE_NS_MAX)
        self._is_awake = False
        if due_ns is None:
            return None
        left_ns = due_ns - self.early_ns() - now_ns
        self._is_awake = left_ns < _WAKE_NS and self._allowance_ns > 0
        if self._is_awake:
            return 0
        if self._allowance_ns > 0:
            return left_ns - _WAKE_NS
        return max(left_ns, _GRAIN_NS)


def be_punctual() -> bool:
    """Ask for real-time priority, so that other work on the host does not make packets late. Tells if it got it."""
    gc.disable()  # nothing here makes cycles, and a collection is a pause
    _LIBC.prctl(_PR_SET_TIMERSLACK, 1)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_REALTIME_PRIORITY))
    except PermissionError:
        return False
    return True
