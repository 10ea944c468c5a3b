"""The registry: every kind of measurement there is. A new one is one file here and one line below."""

from __future__ import annotations

from probe.tasks import availability, capacity, dns, host, ipv6, path, responsiveness, round_trip, web
from probe.tasks.base import AnyTask

_ALL: tuple[AnyTask, ...] = (
    availability.TASK,
    capacity.TASK,
    dns.TASK,
    host.TASK,
    ipv6.TASK,
    path.TASK,
    responsiveness.TASK,
    round_trip.TASK,
    web.TASK,
)

TASKS: dict[str, AnyTask] = {task.name: task for task in _ALL}
