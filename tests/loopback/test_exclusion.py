"""The device's one heavy measurement: between processes, and when one of them dies."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from probe.errors import NotRunError
from probe.measure.exclusion import HeavyLock
from probe.messages import NotRunReason

HOLDER = """
import asyncio, sys
from pathlib import Path
from probe.measure.exclusion import HeavyLock

async def hold():
    with await HeavyLock(Path(sys.argv[1])).acquire(5):
        print("held", flush=True)
        await asyncio.sleep(60)

asyncio.run(hold())
"""


async def test_a_killed_holder_gives_it_back(tmp_path: Path) -> None:
    """While another process holds the lock there is no slot; when it is killed, there is one at once."""
    lock = HeavyLock(tmp_path / "heavy.lock")
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "heavy.lock")], stdout=subprocess.PIPE)  # noqa: ASYNC220 - its first line is awaited below
    try:
        assert holder.stdout is not None
        assert await asyncio.to_thread(holder.stdout.readline) == b"held\n"
        with pytest.raises(NotRunError) as caught:
            await lock.acquire(0.15)
        assert caught.value.not_run.reason is NotRunReason.NO_SLOT
        waiting = asyncio.create_task(lock.acquire(20))
        await asyncio.sleep(0)
    finally:
        holder.kill()
        holder.communicate()
    with await waiting:
        pass


async def test_a_free_lock_needs_no_wait(tmp_path: Path) -> None:
    """At the very end of a slot a free lock is still given; a held one is not; a cancelled wait leaves it free."""
    lock = HeavyLock(tmp_path / "heavy.lock")
    for wait_s in (0.0, -5.0):
        with await lock.acquire(wait_s):
            with pytest.raises(NotRunError):
                await lock.acquire(0.0)
            waiting = asyncio.create_task(lock.acquire(20))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting


async def test_a_lock_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    """A folder that is not there is an error of the device, and holds nobody up afterwards."""
    lock = HeavyLock(tmp_path / "none" / "heavy.lock")
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            await lock.acquire(1.0)
