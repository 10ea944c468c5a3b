"""Runs what is due: guards it, makes its row, measures once, and says what came of it.

Every action ends in exactly one result: `values`, `failure`, or `not_run` with the reason. The result that is true if
the power fails now is stored before the first packet leaves, because an outage is the most valuable record.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import msgspec

from probe.clock import NS_PER_S, Clock, Instant
from probe.errors import NotRunError
from probe.instruction import COMMAND_SCHEDULE, suppressing
from probe.links import Link
from probe.measure.exclusion import HeavyLock
from probe.measure.fitness import FitnessJudge
from probe.measure.outcome import interim_of, outcome_of
from probe.measure.targets import TargetGuard
from probe.messages import (
    Action,
    LinkName,
    NotRun,
    NotRunReason,
    Peer,
    PeerName,
    Progress,
    Result,
    ScheduleStatus,
    Suppression,
)
from probe.tasks import TASKS
from probe.tasks.base import AnyTask, Context, Load, Parameters, Usage, variant_of

_LOG = logging.getLogger(__name__)
# Progress is for eyes. Of a light measurement on schedule it would cost more than its report does: only one that takes
# long is worth it, and what is heavy or was commanded is told at once.
_TELL_AFTER_S = 2.0
# Two measurements that begin in the same nanosecond would be one point in the database. A clock that was stepped back
# further than this is believed instead of being pushed on.
_SAME_TIME_NS = NS_PER_S
# How long a continuous task goes on when a person asks for it, and no window follows.
_COMMAND_WINDOW_S = 30.0
# A window may still be deciding about its last seconds, and its row still be written, when the next one begins; and
# after a change of the schedule's period one of the windows of before goes on.
_WINDOWS_AT_A_TIME = 3

_MemoryKey = tuple[str, LinkName | None, str, PeerName | None]


class Outbox(Protocol):
    """Where results go, durably."""

    async def begin(self, draft: Result, started: Instant) -> int:
        """Store what is true if the power fails now; returns the row."""

    async def finish(self, row: int, result: Result) -> int:
        """Replace a row's draft by what came of it."""

    async def add(self, result: Result, started: Instant) -> int:
        """Store a result that needed no draft."""


@dataclass(frozen=True, slots=True)
class Invocation:
    """The actions of one schedule, or command, to run now on one link.

    `deadline_s` is the end of its slot on the monotonic clock: a heavy measurement that could not begin until then does
    not begin. The actions of a continuous one go on side by side until then.
    """

    schedule: str
    link: LinkName | None
    actions: tuple[Action, ...]
    deadline_s: float
    cycle_number: int | None = None
    command_id: str | None = None
    is_continuous: bool = False

    @property
    def items(self) -> Sequence[tuple[Action, PeerName | None]]:
        """Each action with each of its peers in turn, in order."""
        return [(action, peer) for action in self.actions for peer in action.peers or (None,)]


@dataclass(slots=True)
class _Counters:
    """RFC 8194 `lmapt`: executions of a schedule, and those that did not happen or did not succeed."""

    invocations: int = 0
    overlaps: int = 0
    suppressions: int = 0
    failures: int = 0


@dataclass(slots=True, eq=False)
class _Activity:
    """A measurement that goes on: where, and whether a heavy one shared the interface with it."""

    interface: str | None
    load: Load
    own_load: bool = False


@dataclass(frozen=True, slots=True)
class _Plan:
    """A measurement that may be made."""

    task: AnyTask
    parameters: Parameters
    time_out_s: float
    link: Link | None
    peer: Peer | None
    window_end_s: float | None = None


@dataclass(slots=True)
class Instructed:
    """What of the instruction in force a measurement needs."""

    peers: Mapping[PeerName, Peer] = field(default_factory=dict)
    suppressions: tuple[Suppression, ...] = ()


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
        self._agent_id = agent_id
        self._clock = clock
        self._links = links
        self._outbox = outbox
        self._guard = guard
        self._heavy = heavy
        self._on_progress = on_progress
        self._tasks = tasks
        self._stamp_keys = stamp_keys or {}
        self._peer_ca_file = peer_ca_file
        self._counters: dict[tuple[str, LinkName | None], _Counters] = {}
        self._running: Counter[tuple[str, LinkName | None, str | None, bool]] = Counter()
        self._memories: dict[_MemoryKey, dict[str, Any]] = {}
        self._activities: set[_Activity] = set()
        self._fitness = FitnessJudge()
        self._last_start_ns = 0
        self._outbox_failed = False

    def schedule_statuses(self) -> tuple[ScheduleStatus, ...]:
        """The counters of every schedule on every link since the start."""
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

    def forget_counters_except(self, keys: Sequence[tuple[str, LinkName | None]]) -> None:
        """Drop the counters of schedules that are no more, so that a year of changes fills no status message."""
        kept = {*keys, *((name, link) for name, link in self._counters if name == COMMAND_SCHEDULE)}
        self._counters = {key: counters for key, counters in self._counters.items() if key in kept}
        self._memories = {key: memory for key, memory in self._memories.items() if key[:2] in kept}

    async def run(self, invocation: Invocation) -> None:
        """Run every action with every peer in order. One that fails or cannot be made does not stop the next."""
        key = (invocation.schedule, invocation.link, invocation.command_id, invocation.is_continuous)
        is_known = invocation.link is None or invocation.link in self._links
        # Of links that a command made up nothing is kept: the status has to fit into a packet.
        counters = self._counters.setdefault(key[:2], _Counters()) if is_known else _Counters()
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
            await self._record(self._add_not_run(invocation, action, peer, NotRunError(reason, detail)))

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
            plan = self._plan(invocation, action, peer_name)
            hold = await self._take_turn(plan, invocation)
        except NotRunError as error:
            return await self._add_not_run(invocation, action, peer_name, error)
        except asyncio.CancelledError:
            stopped = NotRunError(NotRunReason.INTERRUPTED, "the agent was stopped")
            await self._add_not_run(invocation, action, peer_name, stopped)
            raise
        with hold:
            return await self._measure(plan, self._draft(invocation, action, peer_name, plan))

    async def _take_turn(self, plan: _Plan, invocation: Invocation) -> AbstractContextManager[None]:
        """A context in which this measurement may load the line."""
        if plan.task.load is not Load.HEAVY:
            return nullcontext()
        try:
            return await self._heavy.acquire(invocation.deadline_s - self._clock.monotonic_s())
        except OSError as error:
            problem = f"heavy.lock cannot be held: {error.strerror}"
            raise NotRunError(NotRunReason.NO_SLOT, problem) from error

    def _plan(self, invocation: Invocation, action: Action, peer_name: PeerName | None) -> _Plan:
        """Find everything that a measurement needs.

        Raises:
            NotRunError: it must not or cannot be made.
        """
        task = self._tasks.get(action.task)
        if task is None:
            raise NotRunError(NotRunReason.UNKNOWN_TASK, f"this agent has no task {action.task!r}")
        parameters, time_out_s = _convert(action.parameters, task)
        for host in task.targets(parameters):
            self._guard.check(host)
        peer = self._find_peer(peer_name, task)
        plan = _Plan(task, parameters, time_out_s, self._find_link(invocation.link, task), peer)
        return plan if not task.continuous else self._in_window(plan, invocation)

    def _in_window(self, plan: _Plan, invocation: Invocation) -> _Plan:
        """The plan of a continuous measurement, which goes on until the next one begins."""
        now_s = self._clock.monotonic_s()
        end_s = invocation.deadline_s if invocation.is_continuous else now_s + _COMMAND_WINDOW_S
        return replace(plan, window_end_s=end_s, time_out_s=end_s - now_s + plan.time_out_s)

    def _find_peer(self, name: PeerName | None, task: AnyTask) -> Peer | None:
        if name is None:
            if task.needs_peer:
                raise NotRunError(NotRunReason.UNKNOWN_PEER, f"{task.name} needs a peer and the action names none")
            return None
        peer = self.instructed.peers.get(name)
        if peer is None:
            raise NotRunError(NotRunReason.UNKNOWN_PEER, f"the instruction has no peer {name!r}")
        self._guard.check(peer.host)
        return peer

    def _find_link(self, name: LinkName | None, task: AnyTask) -> Link | None:
        if name is None:
            if task.needs_link:
                raise NotRunError(NotRunReason.UNKNOWN_LINK, f"{task.name} measures a link and was given none")
            return None
        link = self._links.get(name)
        if link is None:
            raise NotRunError(NotRunReason.UNKNOWN_LINK, f"this agent has no link {name!r}")
        if task.needs_link_up and not link.is_up():
            raise NotRunError(NotRunReason.LINK_DOWN, f"interface {link.interface} is absent or down")
        return link

    async def _add_not_run(
        self, invocation: Invocation, action: Action, peer_name: PeerName | None, error: NotRunError
    ) -> Result:
        started = self._start()
        draft = self._draft(invocation, action, peer_name)
        result = msgspec.structs.replace(draft, start_unix_ns=started.wall_ns, not_run=error.not_run)
        await self._outbox.add(result, started)
        _LOG.debug("Did not run %s on %s: %s", action.task, invocation.link, error)
        return result

    def _draft(
        self, invocation: Invocation, action: Action, peer_name: PeerName | None, plan: _Plan | None = None
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
            variant=_variant(action, task) if plan is None else variant_of(plan.parameters),
            cycle_number=invocation.cycle_number,
            command_id=invocation.command_id,
            not_run=NotRun(reason=NotRunReason.INTERRUPTED),
        )

    def _start(self) -> Instant:
        """This moment, never the same twice."""
        now = Instant.now(self._clock)
        if 0 <= self._last_start_ns - now.wall_ns < _SAME_TIME_NS:
            now = Instant(wall_ns=self._last_start_ns + 1, boottime_ns=now.boottime_ns)
        self._last_start_ns = now.wall_ns
        return now

    async def _measure(self, plan: _Plan, draft: Result) -> Result:
        started = self._start()
        draft = msgspec.structs.replace(draft, start_unix_ns=started.wall_ns)
        row = await self._outbox.begin(draft, started)
        context = Context(
            clock=self._clock,
            time_out_s=plan.time_out_s,
            link=plan.link,
            peer=plan.peer,
            stamp_keys=self._stamp_keys,
            peer_ca_file=self._peer_ca_file,
            window_s=None if plan.window_end_s is None else plan.window_end_s - self._clock.monotonic_s(),
            start_boottime_ns=started.boottime_ns,
            memory=self._memory_of(plan, draft),
        )
        # Of windows that follow one another nobody wants to hear twice a minute.
        tell_after_s = _TELL_AFTER_S if plan.window_end_s is None else plan.time_out_s + _TELL_AFTER_S
        at_once = plan.task.load is Load.HEAVY or draft.command_id is not None
        loop = asyncio.get_running_loop()
        telling = loop.call_later(0.0 if at_once else tell_after_s, self._tell, "started", draft)
        try:
            result = await self._observe(plan, context, draft)
        except asyncio.CancelledError:
            await self._outbox.finish(row, self._interrupted(plan, context, draft))
            raise
        finally:
            telling.cancel()
        await self._outbox.finish(row, result)
        if telling.when() <= loop.time():
            self._tell("finished", result)
        return result

    def _memory_of(self, plan: _Plan, draft: Result) -> dict[str, Any]:
        """What the windows of one series leave for each other. A command's leaves nothing."""
        if not plan.task.continuous or draft.schedule == COMMAND_SCHEDULE:
            return {}
        return self._memories.setdefault((draft.schedule, draft.link, draft.action, draft.peer), {})

    def _interrupted(self, plan: _Plan, context: Context, draft: Result) -> Result:
        """What is true of a measurement that is ended now: what it has seen where it can say so, else the draft."""
        result = _with_usage(draft, context.usage)
        values = interim_of(plan.task, context)
        if values is None or context.start_boottime_ns is None:
            return result
        duration_s = (self._clock.boottime_ns() - context.start_boottime_ns) / NS_PER_S
        return msgspec.structs.replace(result, values=values, not_run=None, duration_s=duration_s)

    async def _observe(self, plan: _Plan, context: Context, draft: Result) -> Result:
        """Measure once, and read the host before and after."""
        with self._activity(plan) as activity:
            begun, started_s = self._fitness.begin(plan.link), self._clock.monotonic_s()
            said = await outcome_of(plan.task, context, plan.parameters)
            duration_s = self._clock.monotonic_s() - started_s
        fit = self._fitness.end(
            begun,
            plan.task.load,
            plan.link,
            context.usage,
            ip_version=getattr(plan.parameters, "ip_version", 0),
            own_load=activity.own_load,
        )
        result = msgspec.structs.replace(_with_usage(draft, context.usage), duration_s=duration_s, fitness=fit)
        return msgspec.structs.replace(result, **{"not_run": None, **said})

    @contextmanager
    def _activity(self, plan: _Plan) -> Iterator[_Activity]:
        """Whoever shares an interface with a heavy measurement is marked, whichever of the two began first."""
        own = _Activity(plan.link.interface if plan.link is not None else None, plan.task.load)
        beside = [other for other in self._activities if other.interface == own.interface is not None]
        own.own_load = any(other.load is Load.HEAVY for other in beside)
        for other in beside:
            other.own_load = other.own_load or own.load is Load.HEAVY
        self._activities.add(own)
        try:
            yield own
        finally:
            self._activities.discard(own)

    def _tell(self, state: Any, result: Result) -> None:
        outcome: Any = "values" if result.values is not None else "failure" if result.failure is not None else "not_run"
        self._on_progress(
            Progress(
                agent_id=self._agent_id,
                task=result.task,
                state=state,
                at_unix_ns=self._clock.wall_ns(),
                link=result.link,
                peer=result.peer,
                outcome=outcome if state == "finished" else None,
            )
        )


def _convert(raw: Mapping[str, Any], task: AnyTask) -> tuple[Parameters, float]:
    """The task's parameters, and how long a measurement with them may take.

    Raises:
        NotRunError: `bad_parameters`.
    """
    try:
        parameters = msgspec.convert(raw, task.parameters)
        return parameters, float(task.time_out_s(parameters))
    except (msgspec.ValidationError, ValueError) as error:
        raise NotRunError(NotRunReason.BAD_PARAMETERS, str(error)) from None


def _variant(action: Action, task: AnyTask | None) -> dict[str, str]:
    """The series that a measurement which was not made would have belonged to, where its parameters say so."""
    try:
        return variant_of(_convert(action.parameters, task)[0]) if task is not None else {}
    except NotRunError:
        return {}


def _with_usage(result: Result, usage: Usage) -> Result:
    return msgspec.structs.replace(result, bytes_sent=usage.sent_bytes, bytes_received=usage.received_bytes)
