"""One planned measurement from its row to its result.

The result that is true if the power fails now is stored before the first packet leaves, because an outage is the most
valuable record.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec

from probe.clock import NS_PER_S, Clock
from probe.instruction import COMMAND_SCHEDULE
from probe.measure.counters import ScheduleKey
from probe.measure.fitness import FitnessJudge
from probe.measure.outcome import interim_of, outcome_of
from probe.measure.own_load import OwnLoad
from probe.measure.plan import Plan
from probe.measure.rows import Outbox, Rows
from probe.messages import LinkName, PeerName, Progress, Result
from probe.tasks.base import Context, Load, Usage

# Progress is for eyes. Of a light measurement on schedule it would cost more than its report does: only one that takes
# long is worth it, and what is heavy or was commanded is told at once.
_TELL_AFTER_S = 2.0

_MemoryKey = tuple[str, LinkName | None, str, PeerName | None]


class Execution:
    """Makes measurements that are planned, any number of them at a time.

    Args:
        agent_id: who measures, for progress messages.
        clock: the clocks.
        rows: begins the results.
        outbox: where they go.
        on_progress: told of heavy, commanded and long measurements when they start and have finished.
        stamp_keys: the files of the device's STAMP keys by name.
        peer_ca_file: the authorities that vouch for peers with TLS; the system's where it is absent.
    """

    def __init__(
        self,
        *,
        agent_id: str,
        clock: Clock,
        rows: Rows,
        outbox: Outbox,
        on_progress: Callable[[Progress], None],
        stamp_keys: Mapping[str, str],
        peer_ca_file: str | None,
    ) -> None:
        self._agent_id = agent_id
        self._clock = clock
        self._rows = rows
        self._outbox = outbox
        self._on_progress = on_progress
        self._stamp_keys = stamp_keys
        self._peer_ca_file = peer_ca_file
        self._memories: dict[_MemoryKey, dict[str, Any]] = {}
        self._own_load = OwnLoad()
        self._fitness = FitnessJudge()

    async def measure(self, plan: Plan, draft: Result) -> Result:
        """Store the draft, measure once, store what came of it.

        Raises:
            SpoolError: the outbox takes nothing.
        """
        started = self._rows.start()
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

    def forget_memories_except(self, keys: Collection[ScheduleKey]) -> None:
        """Drop what windows of schedules that are no more have left."""
        self._memories = {key: memory for key, memory in self._memories.items() if key[:2] in keys}

    def _memory_of(self, plan: Plan, draft: Result) -> dict[str, Any]:
        """What the windows of one series leave for each other. A command's leaves nothing."""
        if not plan.task.continuous or draft.schedule == COMMAND_SCHEDULE:
            return {}
        return self._memories.setdefault((draft.schedule, draft.link, draft.action, draft.peer), {})

    def _interrupted(self, plan: Plan, context: Context, draft: Result) -> Result:
        """What is true of a measurement that is ended now: what it has seen where it can say so, else the draft."""
        result = _with_usage(draft, context.usage)
        values = interim_of(plan.task, context)
        if values is None or context.start_boottime_ns is None:
            return result
        duration_s = (self._clock.boottime_ns() - context.start_boottime_ns) / NS_PER_S
        return msgspec.structs.replace(result, values=values, not_run=None, duration_s=duration_s)

    async def _observe(self, plan: Plan, context: Context, draft: Result) -> Result:
        """Measure once, and read the host before and after."""
        interface = plan.link.interface if plan.link is not None else None
        with self._own_load.beside(interface, plan.task.load) as activity:
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


def _with_usage(result: Result, usage: Usage) -> Result:
    return msgspec.structs.replace(result, bytes_sent=usage.sent_bytes, bytes_received=usage.received_bytes)
