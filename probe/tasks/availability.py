"""`availability`: when a line was up, down or not watched, to the second, and where it was down.

A continuous task: each result is a window of the schedule's period, and the next one begins where it ends. One small
packet per interval goes to the peer; once an answer is overdue, interface, gateway and the operator's router are asked
too, so that a dead peer is not called a dead line. `flows.outages` has the rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal

import msgspec

from probe.errors import NotRunError
from probe.flows.watching.outages import Rules, Segment, State
from probe.flows.watching.voices import Opener, echo_opener, stamp_opener
from probe.flows.watching.watch import QUICK_S, STALL_S, Learned
from probe.flows.watching.window import Seen, WatchPlan, WatchWindow
from probe.messages import NotRunReason
from probe.tasks.base import WINDOW_S_MAX, Context, Load, Parameters, Sample, TaskType, Values
from probe.tasks.fit import MisfitError, host_misfits, peer_misfits

# A result has to fit into a report. A line that fails more often than that in one window has told what it is.
OUTAGES_MAX: Final = 64
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
        for misfit in host_misfits("operator_host", self.operator_host, self.ip_version):
            raise MisfitError(misfit)

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
        NotRunError: the host allows no ICMP echo, or the peer's STAMP key is missing (`tool_missing`); the window is
            longer than an hour and a half (`bad_parameters`).
    """
    window_s = context.window_s
    if window_s is None or not 0 < window_s <= _WINDOW_S_LIMIT:
        raise NotRunError(NotRunReason.BAD_PARAMETERS, f"a window has to be at most {_WINDOW_S_LIMIT:g} s long")
    window = WatchWindow(
        _plan(context, parameters),
        window_s,
        clock=context.clock,
        start_boottime_ns=context.start_boottime_ns or context.clock.boottime_ns(),
        learned=context.memory.setdefault(f"learned by IPv{parameters.ip_version}", Learned()),
        usage=context.usage,
    )

    def so_far() -> AvailabilityValues | None:
        seen = window.so_far()
        return None if seen is None else _values_of_seen(seen)

    context.interim.values = so_far
    return _values_of_seen(await window.run())


def _plan(context: Context, parameters: AvailabilityParameters) -> WatchPlan:
    link, peer = context.need_link(), context.need_peer()
    stamp_key = context.stamp_key(peer) if parameters.method == "stamp" else None

    def opener(address: str) -> Opener:
        if parameters.method == "icmp":
            return echo_opener(link, address)
        target, reading = (address, peer.stamp_port), context.clock.reading()
        return stamp_opener(link, target, parameters.ip_version, reading, stamp_key)

    return WatchPlan(
        link,
        parameters.ip_version,
        peer.host,
        parameters.operator_host,
        opener,
        parameters.rules(),
        interval_s=parameters.interval_s,
        time_out_s=parameters.time_out_s,
    )


def _values_of_seen(seen: Seen) -> AvailabilityValues:
    return values_of(
        seen.segments,
        packets_sent=seen.packets_sent,
        packets_answered=seen.packets_answered,
        gateway_can_tell=seen.gateway_can_tell,
        operator_can_tell=seen.operator_can_tell,
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
    misfits=lambda parameters, peer: peer_misfits(peer, parameters.ip_version),
    continuous=True,
    needs_link_up=False,
)
