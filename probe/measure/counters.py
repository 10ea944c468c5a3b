"""What became of the invocations of each schedule on each link, counted since the start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from probe.instruction import COMMAND_SCHEDULE
from probe.messages import LinkName, ScheduleStatus

ScheduleKey = tuple[str, LinkName | None]


@dataclass(slots=True)
class Counters:
    """RFC 8194 `lmapt`: executions of a schedule, and those that did not happen or did not succeed."""

    invocations: int = 0
    overlaps: int = 0
    suppressions: int = 0
    failures: int = 0


class ScheduleCounters:
    """The counters of every schedule and link."""

    def __init__(self) -> None:
        self._counters: dict[ScheduleKey, Counters] = {}

    def of(self, key: ScheduleKey) -> Counters:
        """Those of one, to count on."""
        return self._counters.setdefault(key, Counters())

    def statuses(self) -> tuple[ScheduleStatus, ...]:
        """All of them, as the status message has them."""
        return tuple(
            ScheduleStatus(
                schedule=schedule,
                link=link,
                invocations=counters.invocations,
                overlaps=counters.overlaps,
                suppressions=counters.suppressions,
                failures=counters.failures,
            )
            for (schedule, link), counters in self._counters.items()
        )

    def forget_except(self, keys: Sequence[ScheduleKey]) -> None:
        """Drop those of schedules that are no more; commands are no schedule that could end."""
        kept = {*keys, *(key for key in self._counters if key[0] == COMMAND_SCHEDULE)}
        self._counters = {key: counters for key, counters in self._counters.items() if key in kept}
