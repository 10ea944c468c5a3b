"""Which measurements of an invocation are made, when, and how that is counted."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from planted_measurer import MeasurerRig, receive_ten

from probe.clock import SystemClock
from probe.measure.exclusion import HeavyLock
from probe.measure.invocation import Instructed, Invocation
from probe.messages import Action, NotRun, NotRunReason, Suppression
from probe.tasks.base import Context, Load


@pytest.fixture
def rig(tmp_path: Path) -> MeasurerRig:
    """A measurer whose task `planted` receives ten packets."""
    made = MeasurerRig(tmp_path)
    made.plant(receive_ten)
    return made


async def test_each_peer_in_turn(rig: MeasurerRig) -> None:
    """An action is measured with each of its peers in order, and one that is refused stops none."""
    await rig.run(Action(name="a", task="planted", peers=("near", "evil", "near")))
    assert [one.peer for one in rig.outbox.stored] == ["near", "evil", "near"]
    assert [one.values is not None for one in rig.outbox.stored] == [True, False, True]


async def test_an_invocation_that_still_runs_is_an_overlap(rig: MeasurerRig) -> None:
    """The next slot of a schedule on a link that is not done is not run; on another link it is."""
    release, started = asyncio.Event(), asyncio.Event()

    async def wait(context: Context) -> Any:
        started.set()
        await release.wait()
        return await receive_ten(context)

    rig.plant(wait)
    first = asyncio.create_task(rig.measurer.run(rig.invocation()))
    await started.wait()
    result = await rig.run()
    assert result.not_run is not None
    assert result.not_run.reason is NotRunReason.OVERLAP
    release.set()
    assert (await rig.run(link="twin0")).values is not None
    await first
    statuses = {status.link: status for status in rig.measurer.schedule_statuses()}
    assert (statuses["fixed0"].invocations, statuses["fixed0"].overlaps) == (1, 1)
    assert (statuses["twin0"].invocations, statuses["twin0"].overlaps) == (1, 0)


async def test_a_suppressed_schedule_is_not_run(rig: MeasurerRig) -> None:
    """A suppression that holds stops a schedule, says its name, and is counted apart."""
    rig.measurer.instructed = Instructed(suppressions=(Suppression(name="tet"),))
    result = await rig.run()
    assert result.not_run == NotRun(reason=NotRunReason.SUPPRESSED, detail="tet")
    assert (rig.counters().suppressions, rig.counters().invocations) == (1, 0)


class Standing(SystemClock):
    """A wall clock that stands still."""

    def wall_ns(self) -> int:
        """As probe.clock.Clock."""
        return 1_790_000_000_000_000_000


async def test_starts_are_unique(tmp_path: Path) -> None:
    """No two results of a process start in the same nanosecond, even when the clock stands still."""
    rig = MeasurerRig(tmp_path, Standing())
    rig.plant(receive_ten)
    await asyncio.gather(*(rig.measurer.run(rig.invocation(link=link)) for link in ("fixed0", "twin0", "gone0")))
    starts = [one.start_unix_ns for one in rig.outbox.stored]
    assert len(set(starts)) == 3
    assert max(starts) - min(starts) == 2


async def test_heavy_tasks_exclude_each_other(rig: MeasurerRig) -> None:
    """Of heavy tasks on two links one waits for the other."""
    running, most = 0, 0

    async def load(context: Context) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return await receive_ten(context)

    rig.plant(load, "heavy", load=Load.HEAVY)
    heavy = Action(name="h", task="heavy")
    await asyncio.gather(*(rig.measurer.run(rig.invocation(heavy, link=link)) for link in ("fixed0", "twin0")))
    assert most == 1
    assert [one.values is not None for one in rig.outbox.stored] == [True, True]


async def test_a_heavy_task_waits_until_its_slot_ends(rig: MeasurerRig, tmp_path: Path) -> None:
    """While another process holds the device, a heavy task is not run, and a light one is."""
    rig.plant(receive_ten, "heavy", load=Load.HEAVY)
    with await HeavyLock(tmp_path / "heavy.lock").acquire(1.0):
        result = await rig.run(Action(name="h", task="heavy"), wait_s=0.2)
        assert result.not_run is not None
        assert result.not_run.reason is NotRunReason.NO_SLOT
        assert (await rig.run()).values is not None
    assert (await rig.run(Action(name="h", task="heavy"))).values is not None


async def test_a_lock_that_cannot_be_opened_is_told(rig: MeasurerRig, tmp_path: Path) -> None:
    """When the device's lock cannot be held, a heavy task is not run and says why; light ones go on."""
    rig.plant(receive_ten, "heavy", load=Load.HEAVY)
    (tmp_path / "heavy.lock").mkdir()
    result = await rig.run(Action(name="h", task="heavy"))
    assert result.not_run is not None
    assert result.not_run.reason is NotRunReason.NO_SLOT
    assert "heavy.lock cannot be held" in result.not_run.detail
    assert (await rig.run()).values is not None


async def test_counters_of_old_schedules_are_dropped(rig: MeasurerRig) -> None:
    """Counters follow the schedules in force; those of commands stay."""
    await rig.run()
    command = Invocation(
        schedule="command", link="fixed0", actions=(Action(name="a", task="planted"),), deadline_s=0, command_id="c1"
    )
    await rig.measurer.run(command)
    assert rig.outbox.stored[-1].command_id == "c1"
    rig.measurer.forget_counters_except([("other", "fixed0")])
    assert [status.schedule for status in rig.measurer.schedule_statuses()] == ["command"]
