"""Packet trains on long paths: what they show of the line, and when they show nothing."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.flows.bulk.estimate import SAMPLE_PERIOD_S, CapacityEstimator
from probe.flows.bulk.trains import Interval, idle_share, inside_trains, intervals, mean_rate_bps

MBIT = 1_000_000
RTT_S = 0.6
LINE_BPS = 24 * MBIT
Rate = Callable[[float], float]


def parts(*rates_bps: float) -> list[Interval]:
    """One interval of 50 ms of each rate."""
    return [Interval(0.05, rate_bps * 0.05 / 8) for rate_bps in rates_bps]


def in_trains(busy_s: float, line: Rate = lambda _: LINE_BPS) -> Rate:
    """For so long in each round trip as fast as the line, then nothing."""
    return lambda time_s: line(time_s) if time_s % RTT_S < busy_s else 0.0


def followed(rate: Rate, lasting_s: float, rtt_s: float = RTT_S, scatter_ratio: float = 0.0) -> CapacityEstimator:
    """An estimator that saw it, with samples at about every 50 ms."""
    chance, estimator, time_s, came_bytes = random.Random(7), CapacityEstimator(), 0.0, 0.0  # noqa: S311 - no secret
    while time_s < lasting_s:
        period_s = SAMPLE_PERIOD_S * (1 + chance.uniform(-0.1, 0.1))
        for _ in range(10):
            time_s += period_s / 10
            came_bytes += rate(time_s) * (1 + chance.uniform(-1, 1) * scatter_ratio) * period_s / 10 / 8
        estimator.add(time_s, int(came_bytes))
        estimator.advise(rtt_s, can_grow=False)
    return estimator


@pytest.mark.parametrize("busy_s", [0.25, 0.4])
def test_trains_tell_the_line_s_rate(busy_s: float) -> None:
    """A line that is busy for less than half, or for two thirds, of each round trip: its rate, and no lower bound."""
    estimator = followed(in_trains(busy_s), 6.0, scatter_ratio=0.2)
    assert estimator.estimate().capacity_bps < 0.75 * LINE_BPS
    estimate = estimator.capped_estimate(RTT_S)
    assert estimate.capacity_bps == pytest.approx(LINE_BPS, rel=0.03)
    assert not estimate.is_lower_bound
    assert estimate.confidence_ratio is not None
    assert estimate.confidence_ratio < 0.05
    assert 0.4 <= estimate.steady_s < 6.0 * busy_s / RTT_S


def test_a_ramp_in_trains_that_get_longer_tells_it_too() -> None:
    """Slow start of an unpaced sender: the trains double in length, and a cap ends it before any plateau."""
    estimator = followed(lambda time_s: LINE_BPS if time_s % RTT_S < 0.08 * 2 ** (time_s // RTT_S) else 0.0, 2.4)
    assert estimator.estimate().is_lower_bound
    estimate = estimator.capped_estimate(RTT_S)
    assert estimate.capacity_bps == pytest.approx(LINE_BPS, rel=0.03)


def test_a_ramp_whose_trains_get_faster_is_a_lower_bound() -> None:
    """Slow start of a paced sender: half of each round trip, twice as fast in the next one."""
    ramp = in_trains(0.3, lambda time_s: MBIT * 2 ** (time_s // RTT_S))
    estimate = followed(ramp, 3.5).capped_estimate(RTT_S)
    assert estimate.is_lower_bound
    assert estimate.capacity_bps <= 32 * MBIT


def test_windows_that_are_spread_over_the_round_trip_are_no_trains() -> None:
    """A paced sender leaves a sixth of the time: the figure is its mean, and a lower bound."""
    estimate = followed(in_trains(RTT_S * 5 / 6), 9.0).capped_estimate(RTT_S)
    assert estimate.capacity_bps == pytest.approx(LINE_BPS * 5 / 6, rel=0.05)
    assert estimate.is_lower_bound


def test_a_full_line_is_left_as_it_is() -> None:
    """Never idle once it is judged: the same with and without a cap, though slow start came in trains."""
    estimator = followed(lambda time_s: LINE_BPS if time_s > 2 else in_trains(0.1)(time_s), 8.0, scatter_ratio=0.3)
    assert estimator.capped_estimate(RTT_S) == estimator.estimate()
    assert not estimator.estimate().is_lower_bound


def test_on_a_short_path_gaps_are_the_line_s_own() -> None:
    """Windows of 20 ms make no gaps of 200: radio that stands still at times is slower than its bursts."""
    estimator = followed(in_trains(0.3), 6.0, rtt_s=0.02)
    assert estimator.capped_estimate(0.02) == estimator.estimate()


def test_few_or_short_trains_show_nothing() -> None:
    """Two are a chance; of one that lasts three intervals only the middle one counts."""
    long, short = [24 * MBIT] * 10, [24 * MBIT] * 3
    gap = [0.0] * 8
    assert inside_trains(parts(*long, *gap, *long)) is None
    assert inside_trains(parts(*short, *gap, *short, *gap, *short)) is None
    assert inside_trains(parts(*long, *gap, *long, *gap, *long)) is not None


def test_the_ends_of_a_train_do_not_count() -> None:
    """Its first and last interval began before it, or ended after it."""
    train = [18 * MBIT, *[24 * MBIT] * 6, 20 * MBIT]
    inside = inside_trains(parts(*[*train, 0.0, 0.0, 0.0, 0.0] * 3))
    assert inside is not None
    assert mean_rate_bps(inside) == pytest.approx(24 * MBIT)


def test_what_is_idle_is_between_trains() -> None:
    """Before the first and after the last one nobody had asked for anything yet, or any more."""
    assert idle_share(parts(0.0, 0.0, 5 * MBIT, 0.0, 5 * MBIT, 5 * MBIT, 0.0)) == pytest.approx(1 / 4)
    assert idle_share(parts(0.0, 0.0)) == 0
    assert idle_share([]) == 0


def test_samples_that_come_close_together_are_one_interval() -> None:
    """At the end of a cap they are 5 ms apart: too short for a rate."""
    times_s = [0.0, 0.05, *(0.05 + 0.005 * index for index in range(1, 13))]
    counts = [int(time_s * 1000) for time_s in times_s]
    found = intervals(times_s, counts)
    assert [part.length_s for part in found] == pytest.approx([0.05, 0.045])
    assert sum(part.came_bytes for part in found) == pytest.approx(95, abs=1)


@given(st.lists(st.integers(min_value=0, max_value=10_000_000), min_size=1, max_size=200))
def test_any_counts_give_a_figure_between_nothing_and_the_fastest_interval(came: list[int]) -> None:
    """Never an exception, never more than was seen."""
    estimator, total = CapacityEstimator(), 0
    for index, came_bytes in enumerate(came, start=1):
        total += came_bytes
        estimator.add(index * 0.05, total)
        estimator.advise(RTT_S, can_grow=False)
    estimate = estimator.capped_estimate(RTT_S)
    assert 0 <= estimate.capacity_bps <= max(came) * 8 / 0.05 * (1 + 1e-6)
