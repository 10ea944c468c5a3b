"""The row of a result: what is true of it before anything is known, and when it started."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Protocol

import msgspec

from probe.clock import NS_PER_S, Clock, Instant
from probe.errors import NotRunError
from probe.measure.invocation import Invocation
from probe.measure.plan import Plan, variant_asked
from probe.messages import Action, NotRun, NotRunReason, PeerName, Result
from probe.tasks.base import AnyTask, variant_of

_LOG = logging.getLogger(__name__)
# Two measurements that begin in the same nanosecond would be one point in the database. A clock that was stepped back
# further than this is believed instead of being pushed on.
_SAME_TIME_NS = NS_PER_S


class Outbox(Protocol):
    """Where results go, durably."""

    async def begin(self, draft: Result, started: Instant) -> int:
        """Store what is true if the power fails now; returns the row."""

    async def finish(self, row: int, result: Result) -> int:
        """Replace a row's draft by what came of it."""

    async def add(self, result: Result, started: Instant) -> int:
        """Store a result that needed no draft."""


class LastResult:
    """An outbox that keeps one result, in memory: of a single measurement that somebody waits for."""

    def __init__(self) -> None:
        self.result: Result | None = None

    async def begin(self, draft: Result, started: Instant) -> int:  # noqa: ARG002 - as Outbox
        """Keep the draft."""
        self.result = draft
        return 1

    async def finish(self, row: int, result: Result) -> int:  # noqa: ARG002 - as Outbox
        """Keep what came of it."""
        self.result = result
        return 1

    async def add(self, result: Result, started: Instant) -> int:  # noqa: ARG002 - as Outbox
        """Keep what was not run."""
        self.result = result
        return 1


class Rows:
    """Begins the results of this agent; no two of them start at the same time."""

    def __init__(self, clock: Clock, outbox: Outbox, tasks: Mapping[str, AnyTask]) -> None:
        self._clock = clock
        self._outbox = outbox
        self._tasks = tasks
        self._last_start_ns = 0

    def start(self) -> Instant:
        """This moment, never the same twice."""
        now = Instant.now(self._clock)
        if 0 <= self._last_start_ns - now.wall_ns < _SAME_TIME_NS:
            now = Instant(wall_ns=self._last_start_ns + 1, boottime_ns=now.boottime_ns)
        self._last_start_ns = now.wall_ns
        return now

    def draft(
        self, invocation: Invocation, action: Action, peer_name: PeerName | None, plan: Plan | None = None
    ) -> Result:
        """The result that is true if nothing more is ever heard of it. The start is set when it starts."""
        task = self._tasks.get(action.task)
        return Result(
            task=action.task,
            task_version=task.version if task is not None else 0,
            action=action.name,
            schedule=invocation.schedule,
            start_unix_ns=0,
            clock=self._clock.reading(),
            link=invocation.link,
            peer=peer_name,
            variant=variant_asked(action, task) if plan is None else variant_of(plan.parameters),
            cycle_number=invocation.cycle_number,
            command_id=invocation.command_id,
            not_run=NotRun(reason=NotRunReason.INTERRUPTED),
        )

    async def add_not_run(
        self, invocation: Invocation, action: Action, peer_name: PeerName | None, error: NotRunError
    ) -> Result:
        """Store that a measurement was not made, and why."""
        started = self.start()
        draft = self.draft(invocation, action, peer_name)
        result = msgspec.structs.replace(draft, start_unix_ns=started.wall_ns, not_run=error.not_run)
        await self._outbox.add(result, started)
        _LOG.debug("Did not run %s on %s: %s", action.task, invocation.link, error)
        return result
