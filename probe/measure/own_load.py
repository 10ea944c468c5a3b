"""Which measurements shared an interface with a heavy one of this probe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from probe.tasks.base import Load


@dataclass(slots=True, eq=False)
class Activity:
    """A measurement that goes on: where, and whether a heavy one shared the interface with it."""

    interface: str | None
    load: Load
    own_load: bool = False


class OwnLoad:
    """Everything that goes on at this moment."""

    def __init__(self) -> None:
        self._activities: set[Activity] = set()

    @contextmanager
    def beside(self, interface: str | None, load: Load) -> Iterator[Activity]:
        """Whoever shares an interface with a heavy measurement is marked, whichever of the two began first."""
        own = Activity(interface, load)
        others = [other for other in self._activities if other.interface == interface is not None]
        own.own_load = any(other.load is Load.HEAVY for other in others)
        for other in others:
            other.own_load = other.own_load or load is Load.HEAVY
        self._activities.add(own)
        try:
            yield own
        finally:
            self._activities.discard(own)
