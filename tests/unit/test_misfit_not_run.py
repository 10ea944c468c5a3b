"""The agent asks what the check asks: what a careless controller sends ends in `bad_parameters`, not in packets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from planted_measurer import MeasurerRig

from probe.messages import Action, NotRunReason, Peer
from probe.tasks.base import Context, Parameters
from probe.tasks.fit import PEER_FIELD, Misfit


async def test_what_does_not_fit_is_never_started(tmp_path: Path) -> None:
    """The peer's or the parameter's fault stands in the result's detail, and the task's own code is not called."""
    called: list[Context] = []

    async def note(context: Context) -> Any:
        called.append(context)

    def misfits(_: Parameters, peer: Peer | None) -> list[Misfit]:
        return [Misfit(PEER_FIELD, "is none for this", "name another")] if peer is not None else []

    rig = MeasurerRig(tmp_path)
    rig.plant(note, misfits=misfits)
    result = await rig.run(Action(name="a", task="planted", peers=("near",)))
    assert result.not_run is not None
    assert result.not_run.reason is NotRunReason.BAD_PARAMETERS
    assert result.not_run.detail == "peers: is none for this (name another)"
    assert called == []


@pytest.mark.parametrize("peers", [(), ("near",)])
async def test_a_task_that_says_nothing_fits_always(tmp_path: Path, peers: tuple[str, ...]) -> None:
    """Without `misfits` of its own, with a peer or without."""
    called: list[Context] = []

    async def note(context: Context) -> Any:
        called.append(context)

    rig = MeasurerRig(tmp_path)
    rig.plant(note)
    await rig.run(Action(name="a", task="planted", peers=peers))
    assert len(called) == 1
