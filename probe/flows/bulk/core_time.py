"""How long threads were ready to run and had no core, so that a result can say that the host was too busy for it.

The kernel keeps that for each thread (Linux, scheduler/sched-stats.rst) and forgets it when the thread ends; what a
measurement's own thread waited is added up here before that, as the kernel itself does with the CPU time of a process.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Final, TypeVar

A = TypeVar("A")
T = TypeVar("T")

_SCHEDSTAT: Final = "/proc/thread-self/schedstat"
_FILE_BYTES_MAX: Final = 256


class _EndedThreads:
    """The total of the threads that have ended; absent where the kernel keeps none."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.wait_ns: int | None = 0

    def add(self, wait_ns: int | None) -> None:
        with self._lock:
            self.wait_ns = None if wait_ns is None or self.wait_ns is None else self.wait_ns + wait_ns


_ENDED: Final = _EndedThreads()


def thread_wait_ns() -> int | None:
    """How long the calling thread has waited since it began; absent where the kernel does not keep it."""
    try:
        descriptor = os.open(_SCHEDSTAT, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        words = os.read(descriptor, _FILE_BYTES_MAX).split()
    finally:
        os.close(descriptor)
    return int(words[1]) if len(words) > 1 else None


def ended_wait_ns() -> int | None:
    """How long all threads that ran `counted` have waited, those that have ended it."""
    return _ENDED.wait_ns


def counted(work: Callable[[A], T], argument: A) -> T:
    """Run the work of a thread that exists for it alone, and count what it waited."""
    try:
        return work(argument)
    finally:
        _ENDED.add(thread_wait_ns())
