"""The estimator on synthetic lines: no clock, no socket, samples every 50 ms."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.flows.bulk.estimate import (
    SAMPLE_PERIOD_S,
    Advice,
    CapacityEstimator,
    StopReason,
    confidence_ratio,
)

MBIT = 1_000_000
Rate = Callable[[float, int], float]


@dataclass
class Played:
    """How one synthetic transfer went."""

    estimator: CapacityEstimator
    reason: StopReason | None
    ended_s: float
    streams: int


def play(
    rate: Rate, *, rtt_s: float = 0.01, streams_max: int = 16, limit_s: float = 10.0, unsure_until: int = 0
) -> Played:
    """Feed the estimator what a line of `rate(time_s, streams)` bit/s delivers, and do as it advises.

    With up to `unsure_until` streams, that they gained nothing says nothing of more.
    """
    estimator, streams, total, time_s = CapacityEstimator(), 4, 0.0, 0.0
    reason = None
    while reason is None and time_s < limit_s:
        time_s += SAMPLE_PERIOD_S
        total += rate(time_s, streams) * SAMPLE_PERIOD_S / 8
        estimator.add(time_s, int(total))
        advice, reason = estimator.advise(rtt_s, can_grow=streams < streams_max, is_unsure=streams <= unsure_until)
        if advice is Advice.GROW:
            streams += 4
    return Played(estimator, reason, time_s, streams)


def test_a_steady_line_is_known_in_under_two_seconds() -> None:
    """100 Mbit/s: exact, stopped because confident, one stage tried and found useless."""
    played = play(lambda _time_s, _streams: 100 * MBIT)
    estimate = played.estimator.estimate()
    assert estimate.capacity_bps == pytest.approx(100 * MBIT, rel=1e-3)
    assert estimate.confidence_ratio == pytest.approx(0, abs=1e-3)
    assert not estimate.is_lower_bound
    assert played.reason is StopReason.CONFIDENT
    assert played.streams == 8
    assert 1.0 <= estimate.steady_s <= played.ended_s < 2.0


def test_the_ramp_is_not_in_the_figure() -> None:
    """A line that takes 1.5 s to fill gives its full rate, not the mean with the ramp in it."""
    played = play(lambda time_s, _streams: 80 * MBIT * min(1.0, time_s / 1.5))
    assert played.estimator.estimate().capacity_bps == pytest.approx(80 * MBIT, rel=0.01)
    assert played.reason is StopReason.CONFIDENT


def test_calm_is_told_before_the_end_of_the_ramp() -> None:
    """A rate that rises is not calm, one that stands still is so within 300 ms, when the ramp is not yet over."""
    estimator, calm_at_s, total, time_s = CapacityEstimator(), None, 0.0, 0.0
    while not estimator.ramp_is_over:
        time_s += SAMPLE_PERIOD_S
        total += min(100, 10 * 4 ** (time_s / 0.1)) * MBIT * SAMPLE_PERIOD_S / 8
        estimator.add(time_s, int(total))
        estimator.advise(0.01, can_grow=True)
        if estimator.is_calm and calm_at_s is None:
            calm_at_s = time_s
    assert calm_at_s is not None
    assert 0.3 <= calm_at_s < time_s - 0.2
    assert not estimator.is_steady


def grown(per_round_trip: float, rtt_s: float) -> CapacityEstimator:
    """What has followed a rate that grows so much with each round trip, for as long as it takes to tell."""
    estimator, time_s = CapacityEstimator(), 0.0
    while time_s < max(2 * SAMPLE_PERIOD_S, 2 * rtt_s):
        time_s += SAMPLE_PERIOD_S
        total = sum(
            per_round_trip ** (step * SAMPLE_PERIOD_S / rtt_s) for step in range(round(time_s / SAMPLE_PERIOD_S))
        )
        estimator.add(time_s, int(MBIT * total))
    return estimator


@pytest.mark.parametrize("rtt_s", [0.004, 0.05, 0.3])
def test_slow_start_is_not_level(rtt_s: float) -> None:
    """On any path a rate that doubles each round trip is told from one that stands still, and nothing from either."""
    assert not grown(2.0, rtt_s).is_level(rtt_s)
    assert grown(1.0, rtt_s).is_level(rtt_s)
    assert not CapacityEstimator().is_level(rtt_s)


def test_streams_are_added_while_each_stage_gains() -> None:
    """On a lossy path where each stream gets 10 Mbit/s, sixteen streams give 160."""
    played = play(lambda _time_s, streams: 10 * MBIT * streams)
    assert played.streams == 16
    assert played.estimator.estimate().capacity_bps == pytest.approx(160 * MBIT, rel=0.01)


def test_no_more_streams_than_allowed() -> None:
    """With four streams at most, none is added and the plateau is found all the same."""
    played = play(lambda _time_s, streams: 10 * MBIT * streams, streams_max=4)
    assert played.streams == 4
    assert played.estimator.estimate().capacity_bps == pytest.approx(40 * MBIT, rel=0.01)


def test_a_stage_that_gains_five_percent_is_the_last() -> None:
    """A gain of 4 % does not pay for more streams."""
    played = play(lambda _time_s, streams: 100 * MBIT * (1.04 if streams > 4 else 1.0))
    assert played.streams == 8


def test_what_counts_as_a_gain_can_be_told() -> None:
    """One stream beside four gains 4 % on somebody else's: with 2.5 % to beat, more are added."""
    estimator, streams, total = CapacityEstimator(), 4, 0.0
    for sample in range(1, 200):
        total += 100 * MBIT * streams / (streams + 1) * SAMPLE_PERIOD_S / 8
        estimator.add(sample * SAMPLE_PERIOD_S, int(total))
        advice, _ = estimator.advise(0.01, can_grow=True, gain_ratio_min=1.025 if streams == 5 else 1.05)
        if advice is Advice.GROW:
            streams += 1 if streams == 4 else 4
    assert streams == 13


def test_a_stage_that_could_not_show_a_gain_is_followed_by_another() -> None:
    """As often as there are more streams to be had; the figure then is of the last plateau."""
    assert play(lambda _time_s, _streams: 100 * MBIT, unsure_until=8).streams == 12
    gains_late = play(lambda _time_s, streams: 100 * MBIT * (1.0 if streams < 12 else 1.3), unsure_until=8)
    assert gains_late.streams == 16
    assert gains_late.estimator.estimate().capacity_bps == pytest.approx(130 * MBIT, rel=0.01)
    no_more = play(lambda _time_s, _streams: 100 * MBIT, streams_max=8, unsure_until=8)
    assert (no_more.streams, no_more.reason) == (8, StopReason.CONFIDENT)


def wandering(mean: Rate) -> Rate:
    """A line whose rate wanders by a third, one sample like the last (AR(1))."""
    draw = random.Random(7)  # noqa: S311 - the same line each time
    state = [0.0]

    def rate(time_s: float, streams: int) -> float:
        state[0] = 0.8 * state[0] + draw.gauss(0, 0.2)
        return mean(time_s, streams) * max(0.1, 1 + state[0])

    return rate


def test_a_two_phase_line_is_told_with_a_wide_interval() -> None:
    """200 Mbit/s for 3 s, then 50 (a token bucket): five steady seconds, and an interval that owns up to it."""
    played = play(wandering(lambda time_s, _streams: (200 if time_s < 3 else 50) * MBIT))
    estimate = played.estimator.estimate()
    assert played.reason is StopReason.STEADY_TIME
    assert estimate.confidence_ratio is not None
    assert estimate.confidence_ratio > 0.3


def test_a_wandering_line_ends_after_five_steady_seconds() -> None:
    """A mobile line never gets within 3 %: it ends by time and says how unsure it is."""
    played = play(wandering(lambda _time_s, _streams: 40 * MBIT), limit_s=15)
    estimate = played.estimator.estimate()
    assert played.reason is StopReason.STEADY_TIME
    assert estimate.steady_s == pytest.approx(5.0, abs=0.1)
    assert estimate.confidence_ratio is not None
    assert estimate.confidence_ratio > 0.03


@pytest.mark.parametrize("burst_s", [0.1, 0.4, 0.7, 1.5])
def test_a_token_buckets_burst_is_not_in_the_figure(burst_s: float) -> None:
    """400 Mbit/s until the bucket is empty, then 50: the figure is 50, however long the burst."""
    played = play(lambda time_s, _streams: (400 if time_s < burst_s else 50) * MBIT)
    assert played.estimator.estimate().capacity_bps == pytest.approx(50 * MBIT, rel=0.02)


def test_a_rate_that_falls_later_stays_in_the_figure() -> None:
    """A steady second, then half the rate in mid-measurement, is the line's own doing: both count."""
    played = play(lambda time_s, _streams: (100 + 8 * (int(time_s * 20) % 2) if time_s < 3.5 else 50) * MBIT)
    estimate = played.estimator.estimate()
    assert estimate.capacity_bps > 60 * MBIT


def test_bursts_of_slow_start_on_a_long_path_are_no_plateau() -> None:
    """At 600 ms each round trip begins with a burst at the line's rate; the mean doubles: it is still the ramp."""

    def rate(time_s: float, _streams: int) -> float:
        share = min(1.0, 0.05 * 2 ** int(time_s / 0.6))
        return 25 * MBIT if time_s % 0.6 < 0.6 * share else 0.0

    played = play(rate, rtt_s=0.6, streams_max=4)
    assert played.estimator.estimate().capacity_bps == pytest.approx(25 * MBIT, rel=0.02)


def test_before_the_plateau_it_is_a_lower_bound() -> None:
    """Cut off in the ramp (a data cap), the figure is the last 400 ms and is marked."""
    played = play(lambda time_s, _streams: 100 * MBIT * time_s, limit_s=0.5)
    estimate = played.estimator.estimate()
    assert played.reason is None
    assert estimate.is_lower_bound
    assert estimate.confidence_ratio is None
    assert 0 < estimate.capacity_bps < 50 * MBIT


def test_the_streams_of_a_file_end_one_by_one_and_that_is_not_in_the_figure() -> None:
    """Once the load is no longer full, the rest is of the transfer alone: the curve has it, the capacity does not."""
    estimator = CapacityEstimator()
    estimator.end_load()  # nothing has come yet: there is nothing to keep
    for step in range(1, 41):
        estimator.add(step * 0.05, step * 500_000)
        estimator.advise(0.01, can_grow=False)
    for step in range(1, 11):
        estimator.end_load()
        estimator.add(2.0 + step * 0.05, 20_000_000 + step * 50_000)
        assert estimator.advise(0.01, can_grow=False) == (Advice.GO_ON, None)
    estimate = estimator.estimate()
    assert estimate.capacity_bps == pytest.approx(80e6)
    assert not estimate.is_lower_bound
    assert estimate.steady_s <= 2.0
    assert estimator.last_s == pytest.approx(2.5)
    assert estimator.curve(0.1)[-1][1] == pytest.approx(8e6)


def test_the_end_of_a_file_is_no_part_of_what_is_judged() -> None:
    """On a long path it trickles in once in a round trip; the line was full until then, and that is when it ended."""
    played = play(lambda _time_s, _streams: 100 * MBIT, rtt_s=0.6, limit_s=4.0, streams_max=4)
    estimator = played.estimator
    estimator.end_load()
    total = round(100 * MBIT / 8 * played.ended_s)
    for step in range(40):
        total += 100_000 * (step % 8 == 0)
        estimator.add(played.ended_s + SAMPLE_PERIOD_S * (step + 1), total)
    estimate = estimator.capped_estimate(0.6, may_use_trains=False)
    assert (estimate.is_lower_bound, estimate.until_s) == (False, played.ended_s)
    assert estimate.capacity_bps == pytest.approx(100 * MBIT, rel=1e-3)


def test_a_file_that_never_filled_a_long_path_is_a_lower_bound() -> None:
    """It comes as a train in each round trip, to the end: half of the rate is what the windows are, not the line."""
    rate = lambda time_s, _streams: 20 * MBIT * (math.fmod(time_s, 0.6) < 0.3)  # noqa: E731 - one line of arithmetic
    estimator = play(rate, rtt_s=0.6, limit_s=6.0, streams_max=4).estimator
    assert not estimator.estimate().is_lower_bound
    estimate = estimator.capped_estimate(0.6, may_use_trains=False)
    assert (estimate.is_lower_bound, estimate.steady_s, estimate.confidence_ratio) == (True, 0.0, None)
    assert estimate.capacity_bps == estimator.estimate().capacity_bps


def test_a_long_path_is_watched_for_longer() -> None:
    """At 300 ms round trip the figure rests on six round trips at least."""
    played = play(lambda _time_s, _streams: 50 * MBIT, rtt_s=0.3)
    assert played.estimator.estimate().steady_s >= 1.8


def test_a_dead_line_never_becomes_steady() -> None:
    """Without a byte there is no plateau and no capacity."""
    played = play(lambda _time_s, _streams: 0.0, limit_s=3)
    assert played.reason is None
    assert played.estimator.estimate().is_lower_bound
    assert played.estimator.estimate().capacity_bps == 0


def test_without_samples_there_is_nothing() -> None:
    """An estimator that saw nothing gives zero as a lower bound and an empty curve."""
    estimator = CapacityEstimator()
    assert estimator.estimate().capacity_bps == 0
    assert estimator.curve(0.1) == ()


def test_the_curve_has_a_point_per_step_and_every_byte() -> None:
    """Points at 0.1, 0.2 ...; their rates times 100 ms add up to the bytes that came."""
    estimator = CapacityEstimator()
    total = 0
    for index in range(1, 21):
        total += index * 1000
        estimator.add(index * 0.05, total)
    curve = estimator.curve(0.1)
    assert [end_s for end_s, _ in curve] == pytest.approx([0.1 * (index + 1) for index in range(10)])
    assert sum(rate * 0.1 / 8 for _, rate in curve) == pytest.approx(total)


def test_a_count_that_falls_is_held() -> None:
    """A stream that vanished cannot make the rate negative."""
    estimator = CapacityEstimator()
    for time_s, total in ((0.05, 1000), (0.1, 500), (0.15, 2000)):
        estimator.add(time_s, total)
    assert all(rate >= 0 for _, rate in estimator.curve(0.05))


def test_a_sample_out_of_time_is_left_out() -> None:
    """Two samples of one instant would divide by zero."""
    estimator = CapacityEstimator()
    estimator.add(0.05, 100)
    estimator.add(0.05, 200)
    assert estimator.last_s == 0.05
    assert estimator.estimate().capacity_bps == pytest.approx(100 * 8 / 0.05)


def test_the_interval_is_students() -> None:
    """Five independent batches 98..102: t(4) * s / sqrt(5) / mean, by hand 2.776 * 1.5811 / 2.2361 / 100."""
    assert confidence_ratio([100, 98, 102, 99, 101]) == pytest.approx(2.776 * 1.58114 / 2.23607 / 100, rel=1e-4)


def test_correlated_batches_widen_the_interval() -> None:
    """The same values in two runs instead of alternating promise less."""
    alternating, runs = [90.0, 110.0] * 6, [90.0] * 6 + [110.0] * 6
    narrow, wide = confidence_ratio(alternating), confidence_ratio(runs)
    assert narrow is not None
    assert wide is not None
    assert wide > 2 * narrow


@pytest.mark.parametrize("rates", [[], [1.0], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
def test_too_little_gives_no_interval(rates: list[float]) -> None:
    """Fewer than four batches, or a mean of zero: absent, not a number."""
    assert confidence_ratio(rates) is None


@given(
    steps=st.lists(st.tuples(st.floats(0.001, 0.3), st.integers(0, 10**9)), min_size=1, max_size=120),
    rtt_s=st.floats(0.0001, 2.0),
)
def test_any_samples_give_finite_figures(steps: list[tuple[float, int]], rtt_s: float) -> None:
    """Whatever comes, in whatever rhythm: no error, no negative or infinite figure."""
    estimator, time_s, total = CapacityEstimator(), 0.0, 0
    for step_s, step_bytes in steps:
        time_s, total = time_s + step_s, total + step_bytes
        estimator.add(time_s, total)
        estimator.advise(rtt_s, can_grow=total % 2 == 0)
    estimate = estimator.estimate()
    assert math.isfinite(estimate.capacity_bps)
    assert estimate.capacity_bps >= 0
    assert estimate.confidence_ratio is None or math.isfinite(estimate.confidence_ratio)
    assert all(math.isfinite(rate) and rate >= 0 for _, rate in estimator.curve(0.1))
