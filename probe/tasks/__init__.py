"""The registry: every kind of measurement there is. A new one is one file here and one line below."""

from __future__ import annotations

from probe.tasks import capacity, dns, host, round_trip
from probe.tasks.base import AnyTask

_ALL: tuple[AnyTask, ...] = (
    capacity.TASK,
    dns.TASK,
    host.TASK,
    round_trip.TASK,
)

TASKS: dict[str, AnyTask] = {task.name: task for task in _ALL}
