"""`availability`: when a line was up, down or not watched, to the second, and where it was down.

A continuous task: each result is a window of the schedule's period, and the next one begins where it ends. One small
packet per interval goes to the peer; once an answer is overdue, interface, gateway and the operator's router are asked
too, so that a dead peer is not called a dead line. `flows.outages` has the rules.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence
from typing import Annotated, Final, Literal

import msgspec

from probe.clock import NS_PER_S
from probe.errors import MeasurementFailedError, NotRunError
from probe.flows.dns.query import resolve_host
from probe.flows.watching.outages import Rules, Segment, State, decided_until_s, segments_of
from probe.flows.watching.voices import Opener, echo_opener, stamp_opener
from probe.flows.watching.watch import QUICK_S, STALL_S, Learned, Watch
from probe.links import Link
from probe.messages import FailureKind, NotRunReason, Peer
from probe.tasks.base import WINDOW_S_MAX, Context, Load, Parameters, Sample, TaskType, Values

# A result has to fit into a report. A line that fails more often than that in one window has told what it is.
OUTAGES_MAX: Final = 64
RESOLVE_TIME_OUT_S: Final = 5.0
# While a name has no address yet, it is asked for again after this.
_RESOLVE_AGAIN_S: Final = 10.0
# The last look, and the sockets' end, on a busy host.
_MARGIN_S: Final = 2.0
# The first window after a start, or a change of the period, lasts up to half a period longer.
_WINDOW_S_LIMIT: Final = 1.5 * WINDOW_S_MAX


class AvailabilityParameters(Parameters, frozen=True):
    """How to watch.

    `interval_s` is from packet to packet while all is well; `time_out_s` is after how long one counts as lost;
    `losses` is how many in a row are an outage. `operator_host` is an address of the operator's that answers ICMP echo
    (its resolver, a point of its own; any host that shares with the peer nothing but the line will do): without one,
    the first router beyond the gateway is the witness.
    """

    method: Literal["icmp", "stamp"] = "icmp"
    ip_version: Literal[4, 6] = 4
    interval_s: Annotated[float, msgspec.Meta(ge=0.5, le=60)] = 1.0
    time_out_s: Annotated[float, msgspec.Meta(ge=1, le=10)] = 3.0
    losses: Annotated[int, msgspec.Meta(ge=2, le=10)] = 3
    operator_host: str | None = None

    def __post_init__(self) -> None:
        """Refuse a witness that could never be asked: nothing else would ever tell of it."""
        if _version_of_literal(self.operator_host) not in {None, self.ip_version}:
            raise ValueError(f"operator_host {self.operator_host} is not an IPv{self.ip_version} address")

    def rules(self) -> Rules:
        """When lost packets are an outage."""
        return Rules(losses=self.losses, interval_s=self.interval_s, late_s=STALL_S)

    def decision_s_max(self) -> float:
        """How long after the window's end its last seconds may be undecided."""
        return self.losses * max(self.interval_s, QUICK_S) + self.time_out_s + _MARGIN_S


class OutageSample(Sample, frozen=True):
    """A time without an answer from the peer, at one place of the line.

    It begins when the first unanswered packet was sent, `offset_s` after the result's start, and ends when the next
    answered one was. `open_at_start` and `open_at_end` say that this was not seen: the window, or the time in which
    somebody watched, begins or ends within the outage. One that moves from one place to another is several samples
    without time between them. `gateway_answered` and `operator_answered` are absent where they could not tell.
    """

    duration_s: float
    state: State
    packets_lost: int
    open_at_start: bool = False
    open_at_end: bool = False
    gateway_answered: bool | None = None
    operator_answered: bool | None = None


class AvailabilityValues(Values, frozen=True):
    """What a window saw. Up, down and unknown times add up to `window_s`.

    `unknown_s` is the time in which nobody watched, because the host stood still: it is neither up nor down.
    `outage_count` counts uninterrupted times without the peer, of which `longest_outage_s` is the longest within this
    window; `outages_left_out` those samples beyond the first 64. `packets_sent` is without those that the host could
    not send, or stood still after. `gateway_can_tell` and `operator_can_tell` say whether that level has answered on
    this line: without, an outage cannot be placed there.
    """

    window_s: float
    packets_sent: int
    packets_answered: int
    state_at_start: State
    state_at_end: State
    up_s: float
    down_local_s: float = 0.0
    down_gateway_s: float = 0.0
    down_operator_s: float = 0.0
    down_peer_s: float = 0.0
    down_unlocated_s: float = 0.0
    unknown_s: float = 0.0
    outage_count: int = 0
    longest_outage_s: float | None = None
    outages_left_out: int = 0
    gateway_can_tell: bool = False
    operator_can_tell: bool = False
    outages: tuple[OutageSample, ...] = ()


async def measure(context: Context, parameters: AvailabilityParameters) -> AvailabilityValues:
    """Watch for one window.

    A line that is down is a measurement, whatever is down of it.

    Raises:
        MeasurementFailedError: (resolve, name_not_found) at the window's end: the peer has never had an address, and
            every look-up of the window was told that there is no such name.
        NotRunError: the host allows no ICMP echo (`tool_missing`); the window is longer than an hour and a half
            (`bad_parameters`).
    """
    window_s = context.window_s
    if window_s is None or not 0 < window_s <= _WINDOW_S_LIMIT:
        raise NotRunError(NotRunReason.BAD_PARAMETERS, f"a window has to be at most {_WINDOW_S_LIMIT:g} s long")
    return await _Window(context, parameters, window_s).run()


class _Window:
    """One window: drives a `Watch` by the clock, and says what it saw."""

    def __init__(self, context: Context, parameters: AvailabilityParameters, window_s: float) -> None:
        self._context = context
        self._parameters = parameters
        self._link: Link = context.need_link()
        self._peer: Peer = context.need_peer()
        self._learned: Learned = context.memory.setdefault(f"learned by IPv{parameters.ip_version}", Learned())
        self._start_ns = context.start_boottime_ns or context.clock.boottime_ns()
        self._end_s = self._now_s() + window_s
        self._rules = parameters.rules()
        self._watch = Watch(
            self._link,
            parameters.ip_version,
            self._rules,
            interval_s=parameters.interval_s,
            time_out_s=parameters.time_out_s,
            learned=self._learned,
            usage=context.usage,
        )
        # What look-ups of the peer met: no such name; what makes it no name at all; anything else, success included.
        self._no_such_name: MeasurementFailedError | None = None
        self._no_name: NotRunError | None = None
        self._may_exist = False

    async def run(self) -> AvailabilityValues:
        """Watch until the window is over and its last seconds are decided."""
        self._context.interim.values = self._so_far
        resolving = asyncio.create_task(self._resolve_again())
        try:
            await self._resolve_new()
            await self._go_on()
        finally:
            resolving.cancel()
            self._watch.close()
        self._raise_if_no_peer()
        return self._leave(self._end_s)

    async def _go_on(self) -> None:
        """Look at the line step by step, on the monotonic clock: a suspended host finds itself where it was."""
        clock, step_s = self._context.clock, self._watch.step_s
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

    def _now_s(self) -> float:
        """Seconds after the result's start, suspended time included; no step of the wall clock matters."""
        return (self._context.clock.boottime_ns() - self._start_ns) / NS_PER_S

    # Names

    def _hosts(self) -> tuple[str, ...]:
        operator = self._parameters.operator_host
        return (self._peer.host,) if operator is None else (self._peer.host, operator)

    async def _resolve_new(self) -> None:
        """Find the addresses that no window before has left, and set out with what there is."""
        for host in self._unknown_hosts():
            await self._resolve(host)
        if self._no_name is not None:
            raise self._no_name
        self._aim()

    async def _resolve_again(self) -> None:
        """Once per window, and until there is an address: names move, and a line may be down when a window begins."""
        for host in set(self._hosts()) - set(self._unknown_hosts()):
            await self._resolve(host)
        self._aim()
        while self._unknown_hosts():
            await asyncio.sleep(_RESOLVE_AGAIN_S)
            for host in self._unknown_hosts():
                await self._resolve(host)
            self._aim()

    def _unknown_hosts(self) -> list[str]:
        return [host for host in self._hosts() if host not in self._learned.addresses]

    async def _resolve(self, host: str) -> None:
        """Learn an address, or note why not.

        Not to find one is what a line that is down looks like. "No such name" may be that too: routers and portals
        say so of every name while they have no uplink. So nothing that is met here ends the watching.
        """
        problem: MeasurementFailedError | NotRunError | None = None
        try:
            version = self._parameters.ip_version
            self._learned.addresses[host] = await resolve_host(self._link, host, version, RESOLVE_TIME_OUT_S)
        except (MeasurementFailedError, NotRunError) as error:
            problem = error
        if host == self._peer.host:
            self._note(problem)

    def _note(self, problem: MeasurementFailedError | NotRunError | None) -> None:
        """What a look-up says of whether there is such a peer."""
        if isinstance(problem, NotRunError) and problem.not_run.reason is not NotRunReason.LINK_DOWN:
            self._no_name = problem
        elif isinstance(problem, MeasurementFailedError) and problem.failure.kind is FailureKind.NAME_NOT_FOUND:
            self._no_such_name = problem
        else:
            self._may_exist = True

    def _no_peer(self) -> MeasurementFailedError | NotRunError | None:
        """Why there is nobody to watch; absent when there may be. A peer that once had an address has it still."""
        if self._peer.host in self._learned.addresses:
            return None
        return self._no_name or (None if self._may_exist else self._no_such_name)

    def _raise_if_no_peer(self) -> None:
        error = self._no_peer()
        if error is not None:
            raise error

    def _aim(self) -> None:
        peer, *operator = (self._learned.addresses.get(host) for host in self._hosts())
        if peer is not None:
            self._watch.set_peer(peer, self._opener(peer))
        for address in operator:
            if address is not None:
                self._watch.set_operator(address)

    def _opener(self, address: str) -> Opener:
        if self._parameters.method == "icmp":
            return echo_opener(self._link, address)
        reading = self._context.clock.reading()
        return stamp_opener(self._link, address, self._peer.stamp_port, self._parameters.ip_version, reading)

    # What it saw

    def _before(self) -> State | None:
        """How the line was when the window before ended; absent unless that was just now."""
        ended_s = self._learned.end_boottime_s
        if ended_s is None or abs(ended_s - self._start_ns / NS_PER_S) > self._rules.gap_s_max:
            return None
        return self._learned.state

    def _went_down(self) -> bool:
        before = self._before()
        return before is not None and before.is_down

    def _so_far(self) -> AvailabilityValues | None:
        """What is decided when somebody ends the window before its time; absent when nothing is."""
        if self._no_peer() is not None:
            return None
        undecided_s = decided_until_s(self._watch.rounds, self._rules, went_down=self._went_down())
        seen_s = self._now_s() if undecided_s is None else undecided_s
        return self._leave(min(seen_s, self._end_s)) if self._watch.rounds and seen_s > 0 else None

    def _leave(self, end_s: float) -> AvailabilityValues:
        """The window's values; the next one is told how it ended."""
        before = self._before()
        segments = segments_of(self._watch.rounds, self._rules, end_s, before)
        self._learned.end_boottime_s = self._start_ns / NS_PER_S + end_s
        self._learned.state = segments[-1].state
        answers = self._learned.answers
        sent = [one for one in self._watch.rounds if one.at_s < end_s]
        return values_of(
            segments,
            packets_sent=sum(one.local is not False and not one.void for one in sent),
            packets_answered=sum(one.answered is True for one in sent),
            gateway_can_tell=answers.get("gateway", False),
            operator_can_tell=answers.get("operator", False),
        )


def values_of(
    segments: Sequence[Segment],
    *,
    packets_sent: int,
    packets_answered: int,
    gateway_can_tell: bool,
    operator_can_tell: bool,
) -> AvailabilityValues:
    """What a window's segments say, which are in order and without gaps."""
    lasted = {state: sum((one.length_s for one in segments if one.state is state), 0.0) for state in State}
    samples = [_sample(segments, index) for index, one in enumerate(segments) if one.state.is_down]
    stretches_s = _stretches_s(segments)
    return AvailabilityValues(
        window_s=segments[-1].end_s,
        packets_sent=packets_sent,
        packets_answered=packets_answered,
        state_at_start=segments[0].state,
        state_at_end=segments[-1].state,
        up_s=lasted[State.UP],
        down_local_s=lasted[State.DOWN_LOCAL],
        down_gateway_s=lasted[State.DOWN_GATEWAY],
        down_operator_s=lasted[State.DOWN_OPERATOR],
        down_peer_s=lasted[State.DOWN_PEER],
        down_unlocated_s=lasted[State.DOWN_UNLOCATED],
        unknown_s=lasted[State.UNKNOWN],
        outage_count=len(stretches_s),
        longest_outage_s=max(stretches_s, default=None),
        outages_left_out=max(len(samples) - OUTAGES_MAX, 0),
        gateway_can_tell=gateway_can_tell,
        operator_can_tell=operator_can_tell,
        outages=tuple(samples[:OUTAGES_MAX]),
    )


def _sample(segments: Sequence[Segment], index: int) -> OutageSample:
    one = segments[index]
    following = segments[index + 1 : index + 2]
    return OutageSample(
        offset_s=one.start_s,
        duration_s=one.length_s,
        state=one.state,
        packets_lost=sum(lost.is_lost for lost in one.rounds),
        open_at_start=index == 0 or segments[index - 1].state is State.UNKNOWN,
        open_at_end=not following or following[0].state is State.UNKNOWN,
        gateway_answered=_any_answered([lost.gateway for lost in one.rounds]),
        operator_answered=_any_answered([lost.operator for lost in one.rounds]),
    )


def _any_answered(said: Sequence[bool | None]) -> bool | None:
    """Whether a level answered at all; absent when it could not tell."""
    told = [word for word in said if word is not None]
    return any(told) if told else None


def _stretches_s(segments: Sequence[Segment]) -> list[float]:
    """How long the line was down without interruption, each time."""
    stretches: list[float] = []
    was_down = False
    for one in segments:
        if one.state.is_down and was_down:
            stretches[-1] += one.length_s
        elif one.state.is_down:
            stretches.append(one.length_s)
        was_down = one.state.is_down
    return stretches


def _version_of_literal(host: str | None) -> int | None:
    """Of an address, which IP version; absent for a name, and for nothing."""
    try:
        return None if host is None else ipaddress.ip_address(host).version
    except ValueError:
        return None


def _targets(parameters: Parameters) -> tuple[str, ...]:
    assert isinstance(parameters, AvailabilityParameters)  # noqa: S101 - this task's own
    return () if parameters.operator_host is None else (parameters.operator_host,)


TASK = TaskType(
    name="availability",
    # 1: windows without gaps; ICMP echo; an outage is three losses in a row.
    version=1,
    parameters=AvailabilityParameters,
    values=AvailabilityValues,
    measure=measure,
    load=Load.LIGHT,
    time_out_s=AvailabilityParameters.decision_s_max,
    targets=_targets,
    continuous=True,
    needs_link_up=False,
)
