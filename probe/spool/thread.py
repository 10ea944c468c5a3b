"""The spool for the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from probe.clock import Instant
from probe.messages import Result
from probe.spool.spool import Spool

T = TypeVar("T")


class SpoolThread:
    """Every call goes through one thread, in order, so that no fsync stops the event loop.

    `stored` hears of each result that can be sent.
    """

    def __init__(self, spool: Spool, stored: Callable[[Result], None]) -> None:
        self._spool = spool
        self._stored = stored
        self.executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spool")

    async def begin(self, draft: Result, started: Instant) -> int:
        """As `Spool.begin`."""
        return await self.call(self._spool.begin, draft, started)

    async def finish(self, row: int, result: Result) -> int:
        """As `Spool.finish`."""
        # What was measured is written even if the agent is told to stop at this moment.
        sequence = await asyncio.shield(self.call(self._spool.finish, row, result))
        self._stored(result)
        return sequence

    async def add(self, result: Result, started: Instant) -> int:
        """As `Spool.add`."""
        sequence = await asyncio.shield(self.call(self._spool.add, result, started))
        self._stored(result)
        return sequence

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run anything that touches the disk."""
        return await asyncio.get_running_loop().run_in_executor(self.executor, function, *arguments)

    async def close(self) -> None:
        """Close the spool, after what waits for it."""
        await self.call(self._spool.close)
        self.executor.shutdown(wait=False)
