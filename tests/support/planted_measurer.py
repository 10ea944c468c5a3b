"""A measurer of planted tasks, with an outbox in memory."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from probe.clock import Instant, SystemClock
from probe.config import LinkConfig, Targets
from probe.errors import SpoolError
from probe.links import Link
from probe.measure.exclusion import HeavyLock
from probe.measure.invocation import Instructed, Invocation
from probe.measure.measurer import Measurer
from probe.measure.targets import TargetGuard
from probe.messages import Action, Peer, Progress, Result, ScheduleStatus
from probe.tasks.base import AnyTask, Context, Load, Parameters, TaskType, Values

Behaviour = Callable[[Context], Awaitable[Any]]


class PlantedParameters(Parameters, frozen=True):
    """One that makes a variant and one that does not."""

    direction: Literal["download", "upload"] = "download"
    packets: int = 10


class PlantedValues(Values, frozen=True):
    """Something measured."""

    packets_received: int
    delay_s: float | None = None


class MemoryOutbox:
    """Remembers what was stored, in order."""

    def __init__(self) -> None:
        self.begun: dict[int, Result] = {}
        self.stored: list[Result] = []
        self.broken = False
        self._rows = itertools.count(1)

    async def begin(self, draft: Result, started: Instant) -> int:
        """As measure.Outbox."""
        self._work()
        assert draft.start_unix_ns == started.wall_ns
        row = next(self._rows)
        self.begun[row] = draft
        return row

    async def finish(self, row: int, result: Result) -> int:
        """As measure.Outbox."""
        self._work()
        assert self.begun.pop(row).start_unix_ns == result.start_unix_ns
        self.stored.append(result)
        return len(self.stored)

    async def add(self, result: Result, started: Instant) -> int:
        """As measure.Outbox."""
        self._work()
        assert result.start_unix_ns == started.wall_ns
        self.stored.append(result)
        return len(self.stored)

    def _work(self) -> None:
        if self.broken:
            raise SpoolError("the disk is gone")


class MeasurerRig:
    """A measurer of planted tasks."""

    def __init__(self, folder: Path, clock: SystemClock | None = None) -> None:
        self.clock = clock or SystemClock()
        self.outbox = MemoryOutbox()
        self.progress: list[Progress] = []
        self.tasks: dict[str, AnyTask] = {}
        names = {"fixed0": "lo", "twin0": "lo", "gone0": "absent0"}
        self.measurer = Measurer(
            agent_id="hanoi-1",
            clock=self.clock,
            links={name: Link(LinkConfig(name=name, interface=interface)) for name, interface in names.items()},
            outbox=self.outbox,
            guard=TargetGuard(Targets(networks=("192.0.2.0/24",))),
            heavy=HeavyLock(folder / "heavy.lock"),
            on_progress=self.progress.append,
            tasks=self.tasks,
        )
        peers = {"near": Peer(name="near", host="192.0.2.1"), "evil": Peer(name="evil", host="203.0.113.1")}
        self.measurer.instructed = Instructed(peers=peers)

    def plant(self, behaviour: Behaviour, name: str = "planted", *, time_out_s: float = 5.0, **fields: Any) -> None:
        """Add a task to the registry that does this."""

        async def measure(context: Context, parameters: PlantedParameters) -> Any:
            assert isinstance(parameters, PlantedParameters)
            return await behaviour(context)

        settings: dict[str, Any] = {"load": Load.LIGHT, "needs_peer": False, **fields}
        self.tasks[name] = TaskType(
            name=name,
            version=3,
            parameters=PlantedParameters,
            values=PlantedValues,
            measure=measure,
            time_out_s=lambda _: time_out_s,
            **settings,
        )

    def invocation(
        self, *actions: Action, link: str | None = "fixed0", wait_s: float = 5.0, schedule: str = "often"
    ) -> Invocation:
        """One with the action `planted` unless others are given."""
        return Invocation(
            schedule=schedule,
            link=link,
            actions=actions or (Action(name="a", task="planted"),),
            deadline_s=self.clock.monotonic_s() + wait_s,
            cycle_number=7,
        )

    def window(self, *actions: Action, window_s: float = 0.2) -> Invocation:
        """One window of a continuous task."""
        return replace(self.invocation(*actions, wait_s=window_s), is_continuous=True)

    async def run(self, *actions: Action, **fields: Any) -> Result:
        """Run one invocation; the result stored last."""
        await self.measurer.run(self.invocation(*actions, **fields))
        return self.outbox.stored[-1]

    def counters(self) -> ScheduleStatus:
        """Those of the one schedule."""
        (counters,) = self.measurer.schedule_statuses()
        return counters


async def receive_ten(context: Context) -> PlantedValues:
    """Measure well."""
    context.usage.sent_bytes, context.usage.received_bytes = 640, 320
    return PlantedValues(packets_received=10, delay_s=0.5)
