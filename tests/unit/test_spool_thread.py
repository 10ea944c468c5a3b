"""The spool behind the event loop: in order, in one thread, and to the end of what was begun."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from spool_parts import ManualClock, batch_of, draft, open_spool, result, results_of

from probe.clock import Instant
from probe.errors import SpoolError
from probe.messages import Result
from probe.spool.spool import Spool
from probe.spool.thread import SpoolThread


class Rig:
    """A spool, its thread, and what was said to be stored."""

    def __init__(self, path: Path) -> None:
        self.clock = ManualClock()
        self.spool: Spool = open_spool(path, self.clock)
        self.stored: list[Result] = []
        self.thread = SpoolThread(self.spool, self.stored.append)

    def now(self) -> Instant:
        """This moment."""
        return Instant.now(self.clock)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """One that is closed in the end."""
    made = Rig(tmp_path / "spool.db")
    yield made
    await made.thread.close()


async def test_results_are_stored_off_the_loop_and_told(rig: Rig) -> None:
    """Each is written by the one thread of the spool, and told when it can be sent: not a draft."""
    writers: set[str] = set()
    await rig.thread.call(lambda: writers.add(threading.current_thread().name))
    row = await rig.thread.begin(draft(rig.clock), rig.now())
    assert rig.stored == []
    assert await rig.thread.finish(row, result(rig.clock, 1)) == 1
    assert await rig.thread.add(result(rig.clock, 2), rig.now()) == 2
    assert [one.values for one in rig.stored] == [{"number": 1}, {"number": 2}]
    assert len(writers) == 1
    assert threading.current_thread().name not in writers


async def test_a_stop_does_not_lose_what_was_measured(rig: Rig) -> None:
    """Cancelled while its result waits for a slow card: it is written all the same."""
    row = await rig.thread.begin(draft(rig.clock), rig.now())
    is_slow = threading.Event()
    rig.thread.executor.submit(is_slow.wait, 10)
    finishing = asyncio.create_task(rig.thread.finish(row, result(rig.clock, 1)))
    adding = asyncio.create_task(rig.thread.add(result(rig.clock, 2), rig.now()))
    await asyncio.sleep(0)
    for task in (finishing, adding):
        task.cancel()
    await asyncio.gather(finishing, adding, return_exceptions=True)
    assert finishing.cancelled()
    is_slow.set()
    batch = await rig.thread.call(batch_of, rig.spool)
    assert [one.values for one in results_of(batch)] == [{"number": 1}, {"number": 2}]


async def test_what_cannot_be_stored_is_not_told(rig: Rig) -> None:
    """The spool's own error comes through, and nobody is told of a result that is not there."""
    with pytest.raises(SpoolError, match="was not begun"):
        await rig.thread.finish(99, result(rig.clock))
    assert rig.stored == []


async def test_closing_comes_after_what_waits(tmp_path: Path) -> None:
    """What was handed over before is in the file."""
    rig = Rig(tmp_path / "spool.db")
    is_slow = threading.Event()
    rig.thread.executor.submit(is_slow.wait, 10)
    adding = asyncio.create_task(rig.thread.add(result(rig.clock, 7), rig.now()))
    await asyncio.sleep(0)
    closing = asyncio.create_task(rig.thread.close())
    await asyncio.sleep(0)
    is_slow.set()
    await asyncio.gather(adding, closing)
    again = open_spool(tmp_path / "spool.db", rig.clock)
    assert [one.values for one in results_of(batch_of(again))] == [{"number": 7}]
    again.close()
