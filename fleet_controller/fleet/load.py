"""The fleet file: read, and checked to the last line before anything acts on it.

    provinces     those that the fleet covers (absent: all 34)
    operators     who sells the lines
    peers         who answers measurements
    schedules     what is measured, when, on which links
    suppressions  when not to measure
    probes        where each stands, its links, what it measures

`examples/fleet.yaml` in this package has one of each, with comments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fleet_controller.errors import ControllerError
from fleet_controller.fleet.model import (
    Access,
    Fleet,
    FleetAction,
    FleetLink,
    FleetOperator,
    FleetPeer,
    FleetProbe,
    FleetSchedule,
    FleetSuppression,
    Scope,
)
from fleet_controller.fleet.parts import Collector
from fleet_controller.fleet.reader import read_fleet
from fleet_controller.fleet.yaml_lines import Mistake, read_lined
from probe.tasks import TASKS
from probe.tasks.base import AnyTask

__all__ = [
    "Access",
    "CheckedFleet",
    "Fleet",
    "FleetAction",
    "FleetError",
    "FleetLink",
    "FleetOperator",
    "FleetPeer",
    "FleetProbe",
    "FleetSchedule",
    "FleetSuppression",
    "Mistake",
    "Scope",
    "check_fleet",
    "load_fleet",
]


class FleetError(ControllerError):
    """A fleet file that cannot be used: every mistake of it, by line."""

    def __init__(self, path: Path, mistakes: tuple[Mistake, ...]) -> None:
        super().__init__("\n".join(f"{path}:{mistake.line}: {mistake}" for mistake in mistakes))
        self.path = path
        self.mistakes = mistakes


@dataclass(frozen=True, slots=True)
class CheckedFleet:
    """What a fleet file says, and everything to say about it, by line. With an error among it there is no fleet."""

    fleet: Fleet | None
    mistakes: tuple[Mistake, ...]


def load_fleet(path: Path, tasks: Mapping[str, AnyTask] = TASKS) -> Fleet:
    """Read and check a fleet file.

    Raises:
        FleetError: with every mistake and its line. Warnings do not raise.
    """
    checked = check_fleet(path, tasks)
    if checked.fleet is None:
        raise FleetError(path, tuple(mistake for mistake in checked.mistakes if mistake.severity == "error"))
    return checked.fleet


def check_fleet(path: Path, tasks: Mapping[str, AnyTask] = TASKS) -> CheckedFleet:
    """Read a fleet file and say everything that is to be said about it. Never raises."""
    out = Collector()
    root = read_lined(path, out.mistakes)
    fleet = read_fleet(root, out, tasks) if root is not None else None
    mistakes = tuple(sorted(out.mistakes, key=lambda mistake: mistake.line))
    usable = not any(mistake.severity == "error" for mistake in mistakes)
    return CheckedFleet(fleet if usable else None, mistakes)
