"""One window of watching: drives the rounds by the clock, and says what was seen until its end.

The next window begins where this one ends, so each leaves for it how the line was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from probe.clock import NS_PER_S, Clock
from probe.flows.echo.engine import ByteCount
from probe.flows.watching.names import Names
from probe.flows.watching.outages import Rules, Segment, State, decided_until_s, segments_of
from probe.flows.watching.voices import Opener
from probe.flows.watching.watch import STALL_S, Learned, Watch
from probe.links import IpVersion, Link


@dataclass(frozen=True, slots=True)
class WatchPlan:
    """Whom to watch over which line, and how.

    `peer` and `operator` are names or addresses; `opener` makes what the peer is asked by, once it has an address.
    """

    link: Link
    version: IpVersion
    peer: str
    operator: str | None
    opener: Callable[[str], Opener]
    rules: Rules
    interval_s: float
    time_out_s: float


@dataclass(frozen=True, slots=True)
class Seen:
    """What a window saw: its segments in order and without gaps, and the packets in them.

    `packets_sent` is without those that the host could not send, or stood still after.
    """

    segments: tuple[Segment, ...]
    packets_sent: int
    packets_answered: int
    gateway_can_tell: bool
    operator_can_tell: bool


class WatchWindow:
    """A window that begins now.

    Args:
        plan: whom to watch.
        window_s: until when, as long as the host does not stand still.
        clock: the clocks.
        start_boottime_ns: the result's start, from which every moment is told.
        learned: what earlier windows know; kept up to date.
        usage: where the cost is kept.
    """

    def __init__(
        self,
        plan: WatchPlan,
        window_s: float,
        *,
        clock: Clock,
        start_boottime_ns: int,
        learned: Learned,
        usage: ByteCount,
    ) -> None:
        self._plan = plan
        self._clock = clock
        self._learned = learned
        self._start_ns = start_boottime_ns
        self._end_s = self._now_s() + window_s
        if plan.operator is None:
            learned.forget_operator()
        self._names = Names(plan.link, plan.version, plan.peer, plan.operator, learned.addresses, usage)
        self._watch = Watch(
            plan.link,
            plan.version,
            plan.rules,
            interval_s=plan.interval_s,
            time_out_s=plan.time_out_s,
            learned=learned,
            usage=usage,
        )

    async def run(self) -> Seen:
        """Watch until the window is over and its last seconds are decided.

        Raises:
            MeasurementFailedError: (resolve, name_not_found) at the window's end: there is no such peer.
            NotRunError: the host allows no such packets; what the peer is called is no name.
        """
        await self._names.find_first()
        self._aim()
        resolving = asyncio.create_task(self._names.find_on(self._aim))
        try:
            await self._go_on()
        finally:
            resolving.cancel()
            self._watch.close()
        error = self._names.no_peer()
        if error is not None:
            raise error
        return self._leave(self._end_s)

    def so_far(self) -> Seen | None:
        """What is decided when somebody ends the window before its time; absent when nothing is."""
        if self._names.no_peer() is not None:
            return None
        undecided_s = decided_until_s(self._watch.rounds, self._plan.rules, went_down=self._went_down())
        seen_s = self._now_s() if undecided_s is None else undecided_s
        return self._leave(min(seen_s, self._end_s)) if self._watch.rounds and seen_s > 0 else None

    async def _go_on(self) -> None:
        """Look at the line step by step, on the monotonic clock: a suspended host finds itself where it was."""
        clock, step_s = self._clock, self._watch.step_s
        due_s = clock.monotonic_s()
        looked_s = self._now_s()
        while True:
            now_s = self._now_s()
            if now_s - looked_s > step_s + STALL_S:
                self._watch.stall()
                # What nobody saw belongs to the window that slept through it: the next one begins only now.
                self._end_s = max(self._end_s, now_s) if looked_s < self._end_s else self._end_s
            looked_s = now_s
            self._watch.look(now_s)
            if now_s >= self._end_s and self._watch.is_decided(self._end_s, went_down=self._went_down()):
                return
            self._watch.ask(now_s)
            due_s = max(due_s + step_s, clock.monotonic_s())
            await asyncio.sleep(due_s - clock.monotonic_s())

    def _aim(self) -> None:
        peer, operator = self._names.peer_address, self._names.operator_address
        if peer is not None:
            self._watch.set_peer(peer, self._plan.opener(peer))
        if operator is not None:
            self._watch.set_operator(operator)

    def _now_s(self) -> float:
        """Seconds after the result's start, suspended time included; no step of the wall clock matters."""
        return (self._clock.boottime_ns() - self._start_ns) / NS_PER_S

    def _before(self) -> State | None:
        """How the line was when the window before ended; absent unless that was just now."""
        ended_s = self._learned.end_boottime_s
        if ended_s is None or abs(ended_s - self._start_ns / NS_PER_S) > self._plan.rules.gap_s_max:
            return None
        return self._learned.state

    def _went_down(self) -> bool:
        before = self._before()
        return before is not None and before.is_down

    def _leave(self, end_s: float) -> Seen:
        """What was seen until then; the next window is told how this one ended."""
        segments = segments_of(self._watch.rounds, self._plan.rules, end_s, self._before())
        self._learned.end_boottime_s = self._start_ns / NS_PER_S + end_s
        self._learned.state = segments[-1].state
        answers = self._learned.answers
        begun = [one for one in self._watch.rounds if one.at_s < end_s]
        return Seen(
            segments=tuple(segments),
            packets_sent=sum(one.sent and not one.void for one in begun),
            packets_answered=sum(one.answered is True for one in begun),
            gateway_can_tell=answers.get("gateway", False),
            operator_can_tell=answers.get("operator", False),
        )
