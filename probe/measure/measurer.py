"""Runs what is due: guards it, makes its row, measures once, and says what came of it.

Every action ends in exactly one result: `values`, `failure`, or `not_run` with the reason.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

from probe.clock import Clock
from probe.errors import NotRunError
from probe.instruction import suppressing
from probe.links import Link
from probe.measure.counters import Counters, ScheduleCounters, ScheduleKey
from probe.measure.exclusion import HeavyLock
from probe.measure.execution import Execution
from probe.measure.invocation import Instructed, Invocation
from probe.measure.plan import Plan, Planner
from probe.measure.rows import Outbox, Rows
from probe.measure.targets import TargetGuard
from probe.messages import Action, LinkName, NotRunReason, PeerName, Progress, Result, ScheduleStatus
from probe.tasks import TASKS
from probe.tasks.base import AnyTask, Load

_LOG = logging.getLogger(__name__)
# A window may still be deciding about its last seconds, and its row still be written, when the next one begins; and
# after a change of the schedule's period one of the windows of before goes on.
_WINDOWS_AT_A_TIME = 3


class Measurer:
    """Runs invocations, any number of them at a time.

    Args:
        agent_id: who measures, for progress messages.
        clock: the clocks.
        links: the device's links by name.
        outbox: where results go.
        guard: what the device agrees to be aimed at.
        heavy: the exclusion of heavy measurements.
        on_progress: told of heavy, commanded and long measurements when they start and have finished; must return at
            once.
        tasks: the registry.
        stamp_keys: the files of the device's STAMP keys by name.
        peer_ca_file: the authorities that vouch for peers with TLS; the system's where it is absent.
    """

    def __init__(
        self,
        *,
        agent_id: str,
        clock: Clock,
        links: Mapping[LinkName, Link],
        outbox: Outbox,
        guard: TargetGuard,
        heavy: HeavyLock,
        on_progress: Callable[[Progress], None],
        tasks: Mapping[str, AnyTask] = TASKS,
        stamp_keys: Mapping[str, str] | None = None,
        peer_ca_file: str | None = None,
    ) -> None:
        self.instructed = Instructed()
        self._clock = clock
        self._links = links
        self._heavy = heavy
        self._planner = Planner(clock, links, guard, tasks)
        self._rows = Rows(clock, outbox, tasks)
        self._execution = Execution(
            agent_id=agent_id,
            clock=clock,
            rows=self._rows,
            outbox=outbox,
            on_progress=on_progress,
            stamp_keys=stamp_keys or {},
            peer_ca_file=peer_ca_file,
        )
        self._counters = ScheduleCounters()
        self._running: Counter[tuple[str, LinkName | None, str | None, bool]] = Counter()
        self._outbox_failed = False

    def schedule_statuses(self) -> tuple[ScheduleStatus, ...]:
        """The counters of every schedule on every link since the start."""
        return self._counters.statuses()

    def forget_counters_except(self, keys: Sequence[ScheduleKey]) -> None:
        """Drop the counters of schedules that are no more, so that a year of changes fills no status message."""
        self._counters.forget_except(keys)
        self._execution.forget_memories_except(keys)

    async def run(self, invocation: Invocation) -> None:
        """Run every action with every peer in order. One that fails or cannot be made does not stop the next."""
        key = (invocation.schedule, invocation.link, invocation.command_id, invocation.is_continuous)
        is_known = invocation.link is None or invocation.link in self._links
        # Of links that a command made up nothing is kept: the status has to fit into a packet.
        counters = self._counters.of(key[:2]) if is_known else Counters()
        if self._running[key] >= (_WINDOWS_AT_A_TIME if invocation.is_continuous else 1):
            counters.overlaps += 1
            await self.skip(invocation, NotRunReason.OVERLAP, "the one before still runs")
            return
        suppression = suppressing(self.instructed.suppressions, invocation.schedule, self._clock.wall_ns())
        if suppression is not None:
            counters.suppressions += 1
            await self.skip(invocation, NotRunReason.SUPPRESSED, suppression.name)
            return
        counters.invocations += 1
        self._running[key] += 1
        run_items = self._run_side_by_side if invocation.is_continuous else self._run_items
        try:
            counters.failures += not await run_items(invocation)
        finally:
            self._running -= Counter([key])

    async def skip(self, invocation: Invocation, reason: NotRunReason, detail: str = "") -> None:
        """Say of everything in an invocation that it was not run, and why."""
        await self._skip_items(invocation, invocation.items, reason, detail)

    async def _skip_items(
        self,
        invocation: Invocation,
        items: Sequence[tuple[Action, PeerName | None]],
        reason: NotRunReason,
        detail: str,
    ) -> None:
        for action, peer in items:
            await self._record(self._rows.add_not_run(invocation, action, peer, NotRunError(reason, detail)))

    async def _run_items(self, invocation: Invocation) -> bool:
        """Returns whether all of them gave values."""
        items, done, good = invocation.items, 0, True
        try:
            for action, peer in items:
                result = await self._record(self._run_one(invocation, action, peer))
                good = good and result is not None and result.values is not None
                done += 1
        except asyncio.CancelledError:
            await self._skip_items(invocation, items[done + 1 :], NotRunReason.INTERRUPTED, "the agent was stopped")
            raise
        return good

    async def _run_side_by_side(self, invocation: Invocation) -> bool:
        """Returns whether all of them gave values. Stopped, each of them says so for itself."""
        running = (self._record(self._run_one(invocation, action, peer)) for action, peer in invocation.items)
        results = await asyncio.gather(*running)
        return all(result is not None and result.values is not None for result in results)

    async def _record(self, recording: Awaitable[Result]) -> Result | None:
        """Survive an outbox that takes nothing: the next result may find it well again."""
        try:
            result = await recording
        except Exception:  # noqa: BLE001 - logged with its traceback; the next ones must go on
            if not self._outbox_failed:
                _LOG.exception("The spool stopped taking results: what is measured from now on is lost")
            self._outbox_failed = True
            return None
        if self._outbox_failed:
            _LOG.warning("The spool takes results again")
        self._outbox_failed = False
        return result

    async def _run_one(self, invocation: Invocation, action: Action, peer_name: PeerName | None) -> Result:
        try:
            plan = self._planner.plan(invocation, action, peer_name, self.instructed.peers)
            hold = await self._take_turn(plan, invocation)
        except NotRunError as error:
            return await self._rows.add_not_run(invocation, action, peer_name, error)
        except asyncio.CancelledError:
            stopped = NotRunError(NotRunReason.INTERRUPTED, "the agent was stopped")
            await self._rows.add_not_run(invocation, action, peer_name, stopped)
            raise
        with hold:
            return await self._execution.measure(plan, self._rows.draft(invocation, action, peer_name, plan))

    async def _take_turn(self, plan: Plan, invocation: Invocation) -> AbstractContextManager[None]:
        """A context in which this measurement may load the line."""
        if plan.task.load is not Load.HEAVY:
            return nullcontext()
        try:
            return await self._heavy.acquire(invocation.deadline_s - self._clock.monotonic_s())
        except OSError as error:
            problem = f"heavy.lock cannot be held: {error.strerror}"
            raise NotRunError(NotRunReason.NO_SLOT, problem) from error
