"""Continuous tasks: windows that follow one another, side by side, and what they leave for each other."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from planted_measurer import MeasurerRig, PlantedValues, receive_ten

from probe.messages import Action, NotRunReason
from probe.tasks.base import Context


@pytest.fixture
def rig(tmp_path: Path) -> MeasurerRig:
    """A measurer whose task `planted` receives ten packets."""
    made = MeasurerRig(tmp_path)
    made.plant(receive_ten)
    return made


async def test_a_window_is_told_how_long_to_go_on(rig: MeasurerRig) -> None:
    """Until the next window begins, with its own time on top to come to an end."""

    async def go_on(context: Context) -> PlantedValues:
        assert context.window_s is not None
        assert context.start_boottime_ns is not None
        assert 0 < context.window_s <= 0.2
        assert 5 < context.time_out_s <= 5.2
        return PlantedValues(packets_received=1)

    rig.plant(go_on, continuous=True)
    await rig.measurer.run(rig.window())
    assert rig.outbox.stored[-1].values == {"packets_received": 1}


async def test_a_command_watches_for_a_while(rig: MeasurerRig) -> None:
    """Where no window follows, it lasts half a minute, whatever the command's own patience is."""

    async def go_on(context: Context) -> PlantedValues:
        assert context.window_s == pytest.approx(30, abs=0.1)
        assert context.memory == {}
        context.memory["left"] = True
        return PlantedValues(packets_received=1)

    rig.plant(go_on, continuous=True)
    for _ in range(2):
        result = await rig.run(schedule="command", wait_s=0.1)
        assert result.values is not None, result.not_run


async def test_windows_remember(rig: MeasurerRig) -> None:
    """What one leaves the next one of the same series finds, and nobody else; until its schedule is gone."""
    found: list[int] = []

    async def count(context: Context) -> PlantedValues:
        found.append(context.memory.get("count", 0))
        context.memory["count"] = found[-1] + 1
        return PlantedValues(packets_received=1)

    rig.plant(count, continuous=True)
    await rig.measurer.run(rig.window())
    await rig.measurer.run(rig.window())
    await rig.measurer.run(rig.window(Action(name="b", task="planted")))
    rig.measurer.forget_counters_except([])
    await rig.measurer.run(rig.window())
    assert found == [0, 1, 0, 0]


async def test_actions_go_on_side_by_side(rig: MeasurerRig) -> None:
    """Two windows of one invocation need no longer than one; a third still running is an overlap."""
    both, wait = asyncio.Barrier(2), asyncio.Event()

    async def meet(_: Context) -> PlantedValues:
        await both.wait()
        await wait.wait()
        return PlantedValues(packets_received=1)

    rig.plant(meet, continuous=True)
    invocation = rig.window(Action(name="a", task="planted"), Action(name="b", task="planted"))
    running = [asyncio.create_task(rig.measurer.run(invocation)) for _ in range(3)]
    await asyncio.sleep(0.05)
    await rig.measurer.run(invocation)
    overlaps = [result.not_run for result in rig.outbox.stored]
    assert [one.reason for one in overlaps if one is not None] == [NotRunReason.OVERLAP] * 2
    wait.set()
    await asyncio.gather(*running)
    assert len(rig.outbox.stored) == 2 + 6


async def test_a_stop_keeps_what_was_seen(rig: MeasurerRig) -> None:
    """The agent is stopped in mid-window: its values are those of the time until then; without any, the draft."""
    started = asyncio.Event()

    async def go_on(context: Context) -> PlantedValues:
        if context.link is not None and context.link.name == "fixed0":
            context.interim.values = lambda: PlantedValues(packets_received=7)
        started.set()
        await asyncio.sleep(60)
        raise AssertionError

    rig.plant(go_on, continuous=True)
    for link in ("fixed0", "twin0"):
        started.clear()
        task = asyncio.create_task(rig.measurer.run(replace(rig.window(window_s=60), link=link)))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    seen, unseen = rig.outbox.stored
    assert seen.values == {"packets_received": 7}
    assert seen.not_run is None
    assert seen.duration_s is not None
    assert unseen.not_run is not None
    assert unseen.not_run.reason is NotRunReason.INTERRUPTED


async def test_a_link_that_is_down_is_what_it_measures(rig: MeasurerRig) -> None:
    """A task that needs no carrier is given the link all the same."""
    rig.plant(receive_ten, needs_link_up=False, continuous=True)
    await rig.measurer.run(replace(rig.window(), link="gone0"))
    assert rig.outbox.stored[-1].values is not None
