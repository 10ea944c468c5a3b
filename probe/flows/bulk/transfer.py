"""Bulk transfer over one link: several TCP streams, one thread, one selector (RFC 6349 in spirit).

The loop runs in a thread of its own, because a gigabit of events would starve everything else on the agent's loop;
cancelling the measurement ends the thread and resets the sockets.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from probe.flows.bulk.core_time import counted
from probe.flows.bulk.run import Run, Transfer, Watch
from probe.flows.bulk.stream import Order

T = TypeVar("T")


async def transfer(
    order: Order,
    open_socket: Callable[[], socket.socket],
    on_bytes: Callable[[int], None] | None = None,
    watch: Watch | None = None,
) -> Transfer:
    """Carry out `order` over sockets from `open_socket`; `on_bytes` hears the total of bytes with every sample.

    Raises:
        MeasurementFailedError: (connect | request | transfer, ...) no stream is left, or none moves.
        NotRunError: from `open_socket`, when the link is down at the start.
    """
    return await _in_thread(lambda stop: Run(order, open_socket, on_bytes or _ignore, stop, watch).run())


def _ignore(total_bytes: int) -> None:
    """Nobody wants to know."""


async def _in_thread(work: Callable[[threading.Event], T]) -> T:
    """Run `work` in a thread of its own, which is gone when this returns, however it returns."""
    stop = threading.Event()
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bulk")
    future = asyncio.get_running_loop().run_in_executor(executor, counted, work, stop)
    future.add_done_callback(_see)
    try:
        return await asyncio.shield(future)
    finally:
        stop.set()
        try:
            if not future.done():  # cancelled: the thread looks at `stop` every 50 ms
                await asyncio.wait((future,))
        finally:
            executor.shutdown(wait=True)


def _see(future: asyncio.Future[T]) -> None:
    """Look at the outcome, so that nobody reports one as forgotten that nobody waits for any more."""
    if not future.cancelled():
        future.exception()
