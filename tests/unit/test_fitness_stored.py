"""The host's fitness on its way into the database: what is there is written with its type, the rest is not."""

from __future__ import annotations

from pathlib import Path

import msgspec
from ingest_kit import TASKS, accepted, result

from fleet_controller.store.line_protocol import COMMON_FIELDS, Schema
from probe.messages import Fitness, HostLimit, Report, Result

GOLDEN = Path(__file__).parents[1] / "contract" / "golden" / "v1_host_limited" / "report.json"


def test_who_was_the_limit_reaches_the_database(tmp_path: Path) -> None:
    """The golden report that says it is taken, and every figure of it is a field of its type."""
    report = msgspec.json.decode(GOLDEN.read_bytes(), type=Report)
    fitness = msgspec.json.decode(report.entries[0].result, type=Result).fitness
    assert fitness.host_limited_by is HostLimit.CGROUP
    (one,) = accepted(tmp_path, result(fitness=fitness))
    (line,) = Schema(TASKS).lines(one)
    assert 'fitness_host_limited=true,fitness_host_limited_by="cgroup"' in line
    assert "fitness_cross_traffic_before_bps=120000i" in line
    assert "fitness_steal_ratio=0.0," in line
    assert all(f"fitness_{name}=" in line for name in Fitness.__struct_fields__)


def test_every_field_of_fitness_is_reserved() -> None:
    """A task's value can never take the name of one of them."""
    assert {f"fitness_{name}" for name in Fitness.__struct_fields__} <= set(COMMON_FIELDS)
