"""Which measurements say that a heavy one of this probe shared their interface."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from planted_measurer import MeasurerRig, receive_ten

from probe.measure.own_load import OwnLoad
from probe.messages import Action
from probe.tasks.base import Context, Load


@pytest.fixture
def rig(tmp_path: Path) -> MeasurerRig:
    """A measurer whose task `planted` receives ten packets."""
    made = MeasurerRig(tmp_path)
    made.plant(receive_ten)
    return made


async def test_own_load_is_told(rig: MeasurerRig) -> None:
    """Results that shared an interface with a heavy task say so: begun before it, or during it; the heavy one not."""
    before_runs, heavy_runs, release = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def begin_before(context: Context) -> Any:
        before_runs.set()
        await release.wait()
        return await receive_ten(context)

    async def load(context: Context) -> Any:
        heavy_runs.set()
        await release.wait()
        return await receive_ten(context)

    rig.plant(begin_before, "before")
    rig.plant(load, "heavy", load=Load.HEAVY)
    running = [asyncio.create_task(rig.measurer.run(rig.invocation(Action(name="b", task="before"))))]
    await before_runs.wait()
    running.append(asyncio.create_task(rig.measurer.run(rig.invocation(Action(name="h", task="heavy"), link="twin0"))))
    await heavy_runs.wait()
    during = await rig.run(Action(name="d", task="planted"), link="twin0", schedule="other")
    release.set()
    await asyncio.gather(*running)
    after = await rig.run(Action(name="e", task="planted"))
    loads = {one.action: one.fitness.own_load for one in rig.outbox.stored}
    assert during.fitness.own_load
    assert not after.fitness.own_load
    assert loads == {"b": True, "d": True, "h": False, "e": False}


def test_only_the_same_interface_is_shared() -> None:
    """A measurement without a link, or on another interface, was never beside the heavy one; nor is one after it."""
    goes_on = OwnLoad()
    with goes_on.beside("eth0", Load.HEAVY) as heavy:
        with goes_on.beside(None, Load.HEAVY) as elsewhere, goes_on.beside(None, Load.LIGHT) as host:
            pass
        with goes_on.beside("wwan0", Load.LIGHT) as other:
            pass
    with goes_on.beside("eth0", Load.LIGHT) as after:
        pass
    assert not any(one.own_load for one in (heavy, elsewhere, host, other, after))


def test_one_that_crashes_is_beside_nobody_any_more() -> None:
    """Whatever a heavy measurement raises, it no longer counts for those that follow."""
    goes_on = OwnLoad()
    with pytest.raises(KeyError), goes_on.beside("eth0", Load.HEAVY):
        raise KeyError
    with goes_on.beside("eth0", Load.LIGHT) as after:
        assert not after.own_load


def test_two_heavy_ones_mark_each_other() -> None:
    """The exclusion should prevent it; where it does not, neither is clean."""
    goes_on = OwnLoad()
    with goes_on.beside("eth0", Load.HEAVY) as first, goes_on.beside("eth0", Load.HEAVY) as second:
        pass
    assert first.own_load
    assert second.own_load
