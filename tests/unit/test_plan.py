"""What must not or cannot be measured, known before anything is sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from planted_measurer import MeasurerRig, receive_ten

from probe.messages import Action, NotRunReason
from probe.tasks.base import Context


@pytest.fixture
def rig(tmp_path: Path) -> MeasurerRig:
    """A measurer whose task `planted` receives ten packets."""
    made = MeasurerRig(tmp_path)
    made.plant(receive_ten)
    return made


@pytest.mark.parametrize(
    ("action", "link", "reason", "detail"),
    [
        (Action(name="a", task="no_such"), "fixed0", NotRunReason.UNKNOWN_TASK, "no task 'no_such'"),
        (Action(name="a", task="planted"), "mobile9", NotRunReason.UNKNOWN_LINK, "no link 'mobile9'"),
        (Action(name="a", task="planted"), None, NotRunReason.UNKNOWN_LINK, "was given none"),
        (Action(name="a", task="planted"), "gone0", NotRunReason.LINK_DOWN, "absent0 is absent or down"),
        (Action(name="a", task="planted", peers=("far",)), "fixed0", NotRunReason.UNKNOWN_PEER, "no peer 'far'"),
        (Action(name="a", task="needy"), "fixed0", NotRunReason.UNKNOWN_PEER, "the action names none"),
        (Action(name="a", task="planted", peers=("evil",)), "fixed0", NotRunReason.TARGET_REFUSED, "203.0.113.1"),
        (
            Action(name="a", task="planted", parameters={"packet": 1}),
            "fixed0",
            NotRunReason.BAD_PARAMETERS,
            "unknown field `packet`",
        ),
        (
            Action(name="a", task="planted", parameters={"packets": "10"}),
            "fixed0",
            NotRunReason.BAD_PARAMETERS,
            "Expected `int`, got `str`",
        ),
        (
            Action(name="a", task="planted", parameters={"direction": "sideways"}),
            "fixed0",
            NotRunReason.BAD_PARAMETERS,
            "sideways",
        ),
    ],
)
async def test_what_cannot_be_measured_says_why(
    rig: MeasurerRig, action: Action, link: str | None, reason: NotRunReason, detail: str
) -> None:
    """An action that must not or cannot be made is stored with the reason, and no task is called."""

    async def never(_: Context) -> Any:
        pytest.fail("the task was called")

    rig.plant(never)
    rig.plant(never, "needy", needs_peer=True)
    result = await rig.run(action, link=link)
    assert result.not_run is not None
    assert result.not_run.reason is reason
    assert detail in result.not_run.detail
    assert rig.progress == []


async def test_a_host_in_the_parameters_is_a_target_too(rig: MeasurerRig) -> None:
    """Whom the parameters name must be within the device's targets, like a peer."""
    rig.plant(receive_ten, "ask", targets=lambda parameters: ("203.0.113.9",) if parameters.packets == 1 else ())
    result = await rig.run(Action(name="a", task="ask", parameters={"packets": 1}))
    assert result.not_run is not None
    assert result.not_run.reason is NotRunReason.TARGET_REFUSED
    assert (await rig.run(Action(name="a", task="ask"))).values is not None
