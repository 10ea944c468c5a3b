"""Adding a task is one file and one line: a planted one is scheduled, stored and readable."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from real_fleet import Fleet, wait_until

ROOT = Path(__file__).parents[2]

TASK = '''
"""A planted task: how far the moon is, as far as this probe knows."""

from __future__ import annotations

from typing import Literal

from probe.tasks.base import Context, Load, Parameters, Sample, TaskType, Values


class MoonParameters(Parameters, frozen=True):
    """Seen from which side."""

    side: Literal["near", "far"] = "near"
    kilometres: int = 384400


class Step(Sample, frozen=True):
    """One step of the way."""

    way_m: float


class MoonValues(Values, frozen=True):
    """The distance, twice."""

    distance_km: int
    distance_m: float
    visible: bool
    name: str
    steps: tuple[Step, ...]
    phase_ratio: float | None = None


async def measure(context: Context, parameters: MoonParameters) -> MoonValues:
    """Look up."""
    return MoonValues(
        distance_km=parameters.kilometres,
        distance_m=parameters.kilometres * 1000.0,
        visible=parameters.side == "near",
        name=f"moon over {context.need_link().name}",
        steps=(Step(offset_s=0.0, way_m=1.0), Step(offset_s=0.5, way_m=2.0)),
    )


TASK = TaskType(
    name="moon",
    version=1,
    parameters=MoonParameters,
    values=MoonValues,
    measure=measure,
    load=Load.LIGHT,
    time_out_s=lambda parameters: 5.0,
    needs_peer=False,
    baseline_fields=("distance_m",),
)
'''
SCHEDULES = """\
  sky:
    period_s: 1
    actions:
      - {task: moon, parameters: {side: far, kilometres: 405500}}
"""


@pytest.mark.timeout(120)
def test_a_task_is_one_file_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new file and its registry line suffice: the fleet file may name it, it is measured, stored and read back.

    Nothing else is touched: not the contract, the agent, validation or storage.
    """
    tree = tmp_path / "tree"
    for name in ("probe", "fleet_controller"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "probe" / "tasks" / "moon.py").write_text(TASK)
    registry = tree / "probe" / "tasks" / "__init__.py"
    lines = registry.read_text().replace("] = (\n", "] = (\n    moon.TASK,\n", 1)
    registry.write_text(lines.replace("from probe.tasks import ", "from probe.tasks import moon, ", 1))
    monkeypatch.chdir(tree)  # the children import from the folder they start in
    fleet = Fleet(tmp_path, ["moon-1"])
    try:
        fleet.write(SCHEDULES)
        for service in (fleet.broker, fleet.influxd, fleet.resolver, fleet.peer, fleet.controller):
            service.start()
        fleet.run_controller_command("apply")
        fleet.probes["moon-1"].start()
        wait_until(lambda: len(fleet.query("SELECT distance_km FROM moon")) >= 4, "the moon is stored", 40)
        row = fleet.query("SELECT * FROM moon WHERE link = 'mobile0' LIMIT 1")[0]
        steps = fleet.query("SELECT way_m FROM moon_steps WHERE link = 'mobile0'")
    finally:
        fleet.stop()
    assert row["distance_km"] == 405500
    assert row["distance_m"] == 405500000.0
    assert row["visible"] is False
    assert row["name"] == "moon over mobile0"
    assert row["side"] == "far"
    assert row["access"] == "mobile"
    assert "phase_ratio" not in row
    curve = {step["time"]: step["way_m"] for step in steps}
    assert curve[row["time"]] == 1.0
    assert curve[row["time"] + 500_000_000] == 2.0
