"""From byte counts to a capacity: when the ramp is over, whether more streams help, when enough is known.

Pure arithmetic on (time, bytes) samples. The figure is the TCP payload rate of the steady part alone (RFC 6349 calls
it the achievable TCP throughput; TR-143 its full-load window): nothing of the ramp is in it, and no correction factor.
A cap may end it before a long path was full: then the trains of packets tell, those of the ramp too.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import Final

from probe.flows.bulk.trains import inside_trains, intervals, mean_rate_bps, waits_for_windows

SAMPLE_PERIOD_S: Final = 0.05

# The gain of a stage and the end of the ramp are judged over 400 ms at least: one lost packet holds back what came
# after it and releases it in one burst, which looks like a gain over anything shorter.
_WINDOW_S: Final = 0.4
_WINDOW_RTTS: Final = 3.0
GAIN_RATIO_MIN: Final = 1.05
# New streams connect, ask and ramp up before they count: that many round trips.
_SETTLE_RTTS: Final = 3.0
# The ramp goes on while a 200 ms batch beats the highest before it by 15 %.
_BATCH_S: Final = 0.2
# Of two samples one after the other; congestion avoidance adds less, slow start doubles.
_LEVEL_RATIO: Final = 1.25
_RISE_RATIO: Final = 1.15
# On a long path 200 ms batches hold one or two round trips only and their scatter is not the line's.
_LONG_RTT_S: Final = 0.1
_LONG_BATCH_S: Final = 0.4
_PRECISE_RATIO: Final = 0.03
_PRECISE_AFTER_S: Final = 1.0
_PRECISE_AFTER_RTTS: Final = 6.0
_STEADY_S_MAX: Final = 5.0
# A burst is half as fast again as what follows it; a shaper's rate varies by less than that.
_BURST_RATIO: Final = 1.5
_CONSTANT_RATIO: Final = 0.03
_BURST_S_MAX: Final = 2.0  # what falls later is the line's own changing
# Fewer batches give an interval that means nothing.
_BATCHES_MIN: Final = 4
# With few batches the autocorrelation itself is uncertain: above this the factor grows without bound.
_AUTOCORRELATION_MAX: Final = 0.9
_BITS: Final = 8

# Student's t, two-sided 95 %, for 1 to 30 degrees of freedom (any statistics textbook's table).
_T_95: Final = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


class Advice(Enum):
    """What the transfer should do next."""

    GO_ON = auto()
    GROW = auto()
    STOP = auto()


class StopReason(StrEnum):
    """Why a transfer ended. A closed list."""

    CONFIDENT = "confident"  # the interval is within ±3 %
    STEADY_TIME = "steady_time"  # 5 s of steady state: the line itself wanders
    MAX_DURATION = "max_duration"
    MAX_BYTES = "max_bytes"
    WHOLE_FILE = "whole_file"
    TOLD = "told"  # by whoever needed the load


class _Phase(Enum):
    RAMP = auto()
    STAGE = auto()
    STEADY = auto()


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the samples say.

    `confidence_ratio` is the half width of the 95 % interval over the mean, absent with too few batches.
    `is_lower_bound`: the line was never seen to be full, so it may do more. `until_s` is the end of the steady part, in
    seconds since the transfer began: that of a file ends before the file does.
    """

    capacity_bps: float
    confidence_ratio: float | None
    is_lower_bound: bool
    steady_s: float
    until_s: float


class CapacityEstimator:
    """Follows one transfer. Times are seconds since its start, bytes the total of all streams."""

    def __init__(self) -> None:
        self._times_s: list[float] = [0.0]
        self._bytes: list[int] = [0]
        self._phase = _Phase.RAMP
        self._peak_bps = 0.0
        self._risen_s = 0.0
        self._calm_s = _BATCH_S
        self._stage_s = 0.0
        self._stage_before_bps = 0.0
        self._steady_since_s: float | None = None
        self._batch_s = _BATCH_S
        self._burst_left_out = False
        self._loaded_until_s: float | None = None

    def add(self, time_s: float, total_bytes: int) -> None:
        """Take one sample; one that is not later than the last is left out."""
        if time_s > self._times_s[-1]:
            self._times_s.append(time_s)
            # A stream that ended keeps its last count, so the total never falls; a late sample must not make it.
            self._bytes.append(max(total_bytes, self._bytes[-1]))

    def end_load(self) -> None:
        """From the last sample on, the line is no longer full: what comes is of the transfer, not of the capacity.

        The streams of a file do not end at the same moment.
        """
        if self._loaded_until_s is None and self.last_s > 0:
            self._loaded_until_s = self.last_s

    @property
    def last_s(self) -> float:
        """The time of the last sample."""
        return self._times_s[-1]

    @property
    def ramp_is_over(self) -> bool:
        """Whether the streams that run now have found their rate."""
        return self._phase is not _Phase.RAMP

    @property
    def is_steady(self) -> bool:
        """Whether there will be no more streams, and what comes from now on is the figure's."""
        return self._phase is _Phase.STEADY

    @property
    def is_calm(self) -> bool:
        """Whether the rate has stopped rising, as far as can be told at once; `ramp_is_over` takes longer."""
        return self.ramp_is_over or (self._peak_bps > 0 and self.last_s - self._risen_s >= self._calm_s)

    def is_level(self, rtt_s: float) -> bool:
        """Whether no slow start shows in the last samples: within a round trip it would have doubled the rate."""
        step_s, now_s = max(SAMPLE_PERIOD_S, rtt_s), self._times_s[-1]
        before_bps = self._rate_bps(now_s - 2 * step_s, now_s - step_s)
        return now_s >= 2 * step_s and self._rate_bps(now_s - step_s, now_s) <= before_bps * _LEVEL_RATIO

    def advise(
        self, rtt_s: float, *, can_grow: bool, is_unsure: bool = False, gain_ratio_min: float = GAIN_RATIO_MIN
    ) -> tuple[Advice, StopReason | None]:
        """Say what to do after the last sample; a reason comes with STOP.

        `gain_ratio_min` is what counts as a gain of the last stage, new rate over old. `is_unsure`: that it gained
        nothing would not mean that more streams gain nothing.
        """
        now_s = self._times_s[-1]
        if self._loaded_until_s is not None:
            return Advice.GO_ON, None
        if self._phase is _Phase.RAMP:
            return self._advise_in_ramp(now_s, rtt_s, can_grow=can_grow), None
        if self._phase is _Phase.STAGE:
            return self._advise_in_stage(now_s, rtt_s, gain_ratio_min, can_grow=can_grow, is_unsure=is_unsure), None
        self._batch_s = _LONG_BATCH_S if rtt_s > _LONG_RTT_S else _BATCH_S
        reason = self._why_stop(now_s, rtt_s)
        return (Advice.STOP if reason else Advice.GO_ON), reason

    def estimate(self) -> Estimate:
        """The figure of what was seen so far; before the plateau, the rate of the last 400 ms."""
        now_s = self._times_s[-1] if self._loaded_until_s is None else self._loaded_until_s
        since_s = self._steady_since_s
        if since_s is None:
            since_s = max(0.0, now_s - _WINDOW_S)
            return Estimate(self._rate_bps(since_s, now_s), None, is_lower_bound=True, steady_s=0.0, until_s=now_s)
        return Estimate(
            capacity_bps=self._rate_bps(since_s, now_s),
            confidence_ratio=self._confidence_ratio(since_s, now_s),
            is_lower_bound=False,
            steady_s=now_s - since_s,
            until_s=now_s,
        )

    def whole_estimate(self) -> Estimate:
        """All bytes over all the time, as a lower bound: for what ended with its last byte, before the plateau.

        Between the bursts of a slow start, or before a last packet that was lost, there are gaps longer than 400 ms.
        """
        return Estimate(self._rate_bps(0.0, self.last_s), None, is_lower_bound=True, steady_s=0.0, until_s=self.last_s)

    def capped_estimate(self, rtt_s: float, *, may_use_trains: bool = True) -> Estimate:
        """The same of a transfer that its size ends, before a long path was full perhaps: then packet trains tell.

        Without a plateau there is no steady part, and `confidence_ratio` is of the trains' rate.
        """
        plain = self.estimate()
        if rtt_s <= _LONG_RTT_S or self._burst_left_out:
            return plain
        # Only of the time that the mean is of: before it, slow start leaves the line idle between its bursts.
        first = bisect.bisect_left(self._times_s, self._steady_since_s or 0.0)
        end = bisect.bisect_right(self._times_s, plain.until_s)
        judged = intervals(self._times_s[first:end], self._bytes[first:end])
        if not waits_for_windows(judged, rtt_s):
            return plain
        inside = inside_trains(intervals(self._times_s, self._bytes), rtt_s) if may_use_trains else None
        if inside is None:
            return Estimate(plain.capacity_bps, None, is_lower_bound=True, steady_s=0.0, until_s=plain.until_s)
        ratio = confidence_ratio([part.rate_bps for part in inside])
        return Estimate(mean_rate_bps(inside), ratio, is_lower_bound=False, steady_s=0.0, until_s=plain.until_s)

    def curve(self, step_s: float) -> tuple[tuple[float, float], ...]:
        """The rate of each step as (end of the step in seconds, bits per second)."""
        last_s = self._times_s[-1]
        steps = math.floor(last_s / step_s + 1e-6)  # a step that ends with the last sample is whole
        ends_s = [min(step_s * (index + 1), last_s) for index in range(steps)]
        return tuple((end_s, self._rate_bps(end_s - step_s, end_s)) for end_s in ends_s)

    def rate_bps(self) -> float:
        """The rate of the last batch."""
        now_s = self._times_s[-1]
        return self._rate_bps(max(0.0, now_s - _BATCH_S), now_s)

    def _advise_in_ramp(self, now_s: float, rtt_s: float, *, can_grow: bool) -> Advice:
        # In less than a round trip slow start sends bursts at the line's rate: their peak says nothing.
        batch_s = max(_BATCH_S, rtt_s)
        self._calm_s = batch_s / 2
        if now_s < batch_s:
            return Advice.GO_ON
        batch_bps = self._rate_bps(now_s - batch_s, now_s)
        if batch_bps > self._peak_bps * _RISE_RATIO:
            self._peak_bps, self._risen_s = batch_bps, now_s
        window_s = _window_s(rtt_s)
        if batch_bps == 0 or now_s - self._risen_s < window_s:
            return Advice.GO_ON
        if can_grow:
            return self._begin_stage(now_s, self._rate_bps(now_s - window_s, now_s))
        self._begin_steady(now_s - window_s)
        return Advice.GO_ON

    def _advise_in_stage(
        self, now_s: float, rtt_s: float, gain_ratio_min: float, *, can_grow: bool, is_unsure: bool
    ) -> Advice:
        window_s = _window_s(rtt_s)
        if now_s - self._stage_s < window_s + _SETTLE_RTTS * rtt_s:
            return Advice.GO_ON
        after_bps = self._rate_bps(now_s - window_s, now_s)
        has_gained = after_bps > self._stage_before_bps * gain_ratio_min
        if can_grow and (has_gained or is_unsure):
            return self._begin_stage(now_s, max(after_bps, self._stage_before_bps))
        if not has_gained:
            self._begin_steady(now_s - window_s)
            return Advice.GO_ON
        # The last stage helped: wait for its own plateau.
        self._phase, self._peak_bps, self._risen_s = _Phase.RAMP, after_bps, now_s
        return Advice.GO_ON

    def _begin_stage(self, now_s: float, before_bps: float) -> Advice:
        self._phase, self._stage_s, self._stage_before_bps = _Phase.STAGE, now_s, before_bps
        return Advice.GROW

    def _begin_steady(self, since_s: float) -> None:
        self._phase, self._steady_since_s = _Phase.STEADY, max(0.0, since_s)

    def _why_stop(self, now_s: float, rtt_s: float) -> StopReason | None:
        self._leave_out_burst(now_s, rtt_s)
        since_s = self._steady_since_s or 0.0
        steady_s = now_s - since_s
        if steady_s >= _STEADY_S_MAX:
            return StopReason.STEADY_TIME
        if steady_s < max(_PRECISE_AFTER_S, _PRECISE_AFTER_RTTS * rtt_s):
            return None
        ratio = self._confidence_ratio(since_s, now_s)
        return StopReason.CONFIDENT if ratio is not None and ratio <= _PRECISE_RATIO else None

    def _leave_out_burst(self, now_s: float, rtt_s: float) -> None:
        """Begin anew after a token bucket's burst: the rate fell by a third or more, and stands still where it fell to.

        Only a shaper is as constant as that; a line that wanders keeps all of its steady part.
        """
        since_s, window_s = self._steady_since_s or 0.0, _window_s(rtt_s)
        if self._burst_left_out or now_s - since_s < 3 * window_s:
            return
        latest_bps = self._rate_bps(now_s - window_s, now_s)
        before_bps = self._rate_bps(now_s - 2 * window_s, now_s - window_s)
        first_bps = self._rate_bps(since_s, since_s + window_s)
        is_constant = abs(latest_bps - before_bps) <= _CONSTANT_RATIO * latest_bps
        began_early = now_s - 2 * window_s - since_s <= _BURST_S_MAX
        if began_early and is_constant and latest_bps * _BURST_RATIO <= first_bps:
            self._burst_left_out = True
            self._begin_steady(now_s - 2 * window_s)

    def _confidence_ratio(self, since_s: float, now_s: float) -> float | None:
        batches = math.floor((now_s - since_s) / self._batch_s + 1e-6)
        # From the end backwards, so that the last batch is whole and the odd rest is the oldest.
        ends_s = [now_s - self._batch_s * index for index in range(batches)]
        return confidence_ratio([self._rate_bps(end_s - self._batch_s, end_s) for end_s in reversed(ends_s)])

    def _rate_bps(self, since_s: float, until_s: float) -> float:
        if until_s <= since_s:
            return 0.0
        return (self._bytes_at(until_s) - self._bytes_at(since_s)) * _BITS / (until_s - since_s)

    def _bytes_at(self, time_s: float) -> float:
        """The count at any moment, by linear interpolation: samples are never exactly 50 ms apart."""
        index = bisect.bisect_left(self._times_s, time_s)
        if index == 0:
            return float(self._bytes[0])
        if index == len(self._times_s):
            return float(self._bytes[-1])
        before_s, after_s = self._times_s[index - 1], self._times_s[index]
        share = (time_s - before_s) / (after_s - before_s)
        return self._bytes[index - 1] + share * (self._bytes[index] - self._bytes[index - 1])


def confidence_ratio(rates: Sequence[float]) -> float | None:
    """Half width of the 95 % interval of the mean of a correlated series, over that mean.

    The t-interval assumes independent batches; a first-order autocorrelation r widens it by sqrt((1+r)/(1-r)), the
    variance inflation of an AR(1) series. A negative r is taken as 0: it would promise too much.
    """
    if len(rates) < _BATCHES_MIN:
        return None
    # By hand: the `statistics` module brings decimal and fractions along, 0.6 MB of a probe's few.
    mean = math.fsum(rates) / len(rates)
    if mean <= 0:
        return None
    spread = math.sqrt(math.fsum((rate - mean) ** 2 for rate in rates) / (len(rates) - 1))
    correlation = min(max(_autocorrelation(rates, mean), 0.0), _AUTOCORRELATION_MAX)
    factor = math.sqrt((1 + correlation) / (1 - correlation))
    return _t_95(len(rates) - 1) * spread / math.sqrt(len(rates)) * factor / mean


def _autocorrelation(rates: Sequence[float], mean: float) -> float:
    """The lag-1 autocorrelation; 0 for a constant series."""
    deviations = [rate - mean for rate in rates]
    variance = math.fsum(deviation * deviation for deviation in deviations)
    if variance == 0:
        return 0.0
    return math.fsum(a * b for a, b in itertools.pairwise(deviations)) / variance


def _t_95(degrees: int) -> float:
    return _T_95[min(degrees, len(_T_95)) - 1]


def _window_s(rtt_s: float) -> float:
    return max(_WINDOW_S, _WINDOW_RTTS * rtt_s)
