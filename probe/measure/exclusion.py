"""Only one heavy measurement at a time on a device: within the process, and between its processes."""

from __future__ import annotations

import asyncio
import fcntl
import os
from pathlib import Path
from types import TracebackType

from probe.errors import NotRunError
from probe.messages import NotRunReason

# The kernel tells nobody when a file lock is released. Looked at only while another process holds it.
_POLL_S = 0.1


class HeavyLock:
    """The device's right to load a line. The kernel takes it back when its holder dies, however it dies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._within = asyncio.Lock()

    async def acquire(self, wait_s: float) -> HeavyHold:
        """Take it, after waiting for `wait_s` at most. Use the hold as a context.

        Raises:
            NotRunError: other heavy measurements went on for all that time (`no_slot`).
            OSError: the lock's file cannot be opened.
        """
        # Zero still lets a free lock be taken: a time-out of zero ends at the first real wait.
        try:
            async with asyncio.timeout(max(wait_s, 0.0)):
                await self._within.acquire()
                return HeavyHold(await self._lock_file(), self._within)
        except TimeoutError:
            raise NotRunError(NotRunReason.NO_SLOT, "other heavy measurements took all of the slot") from None

    async def _lock_file(self) -> int:
        descriptor = -1
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
            while not _try_lock(descriptor):  # noqa: ASYNC110 - a file lock has no event
                await asyncio.sleep(_POLL_S)
        except BaseException:
            self._within.release()
            if descriptor >= 0:
                os.close(descriptor)
            raise
        return descriptor


class HeavyHold:
    """The right, held until the context ends."""

    def __init__(self, descriptor: int, within: asyncio.Lock) -> None:
        self._descriptor = descriptor
        self._within = within

    def __enter__(self) -> None:
        """Hold."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back."""
        os.close(self._descriptor)
        self._within.release()


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
