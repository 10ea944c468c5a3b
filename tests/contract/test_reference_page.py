"""The reference page speaks of every task and of every figure that it stores."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from probe.messages import Fitness
from probe.tasks import TASKS

PAGE = Path(__file__).parents[2] / "probe" / "docs" / "metrics.md"


def section_of(title: str) -> str:
    """What the page says under a heading of the second level."""
    _, found, rest = PAGE.read_text(encoding="utf-8").partition(f"\n## {title}\n")
    assert found, f"no section {title!r}"
    return rest.partition("\n## ")[0]


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_figure_of_a_task_is_explained(name: str) -> None:
    """Its section names each of its parameters, and each field of its values."""
    said = section_of(name)
    fields = [
        field.name for kind in (TASKS[name].values, TASKS[name].parameters) for field in msgspec.structs.fields(kind)
    ]
    missing = [field for field in fields if f"`{field}`" not in said and f"{name}_{field}`" not in said]
    assert missing == []


def test_every_word_of_fitness_is_explained() -> None:
    """What stands in every result has its section."""
    said = section_of("Was the host fit?")
    assert [field.name for field in msgspec.structs.fields(Fitness) if f"`{field.name}`" not in said] == []
