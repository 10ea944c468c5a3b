"""Packet trains on long paths: what they show of the line, and when they show nothing."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.flows.bulk.estimate import SAMPLE_PERIOD_S, CapacityEstimator
from probe.flows.bulk.trains import Interval, inside_trains, intervals, mean_rate_bps, waits_for_windows

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


def in_longer_trains(first_s: float, more_s: float) -> Rate:
    """As fast as the line, for so much longer in each round trip than in the one before."""
    return lambda time_s: LINE_BPS if time_s % RTT_S < first_s + more_s * (time_s // RTT_S) else 0.0


def in_growing_trains(first_s: float, growth: float) -> Rate:
    """As fast as the line, in each round trip for so many times as long as in the one before: 2 is slow start."""
    return lambda time_s: LINE_BPS if time_s % RTT_S < first_s * growth ** (time_s // RTT_S) else 0.0


def followed(
    rate: Rate,
    lasting_s: float,
    rtt_s: float = RTT_S,
    scatter_ratio: float = 0.0,
    jitter_ratio: float = 0.1,
    seed: int = 7,
) -> CapacityEstimator:
    """An estimator that saw it, with samples about every 50 ms."""
    chance, estimator, time_s, came_bytes = random.Random(seed), CapacityEstimator(), 0.0, 0.0  # noqa: S311 - no secret
    while time_s < lasting_s:
        period_s = SAMPLE_PERIOD_S * (1 + chance.uniform(-1, 1) * jitter_ratio)
        for _ in range(10):
            time_s += period_s / 10
            came_bytes += rate(time_s) * (1 + chance.uniform(-1, 1) * scatter_ratio) * period_s / 10 / 8
        estimator.add(time_s, int(came_bytes))
        estimator.advise(rtt_s, can_grow=False)
    return estimator


@pytest.mark.parametrize(("first_s", "more_s"), [(0.2, 0.01), (0.3, 0.02)])
@pytest.mark.parametrize("seed", range(5))
def test_trains_tell_the_line_s_rate(first_s: float, more_s: float, seed: int) -> None:
    """A line that is busy for half, or for two thirds, of each round trip: its rate, and no lower bound."""
    estimator = followed(in_longer_trains(first_s, more_s), 6.0, scatter_ratio=0.2, seed=seed)
    assert estimator.estimate().capacity_bps < 0.75 * LINE_BPS
    estimate = estimator.capped_estimate(RTT_S)
    assert estimate.capacity_bps == pytest.approx(LINE_BPS, rel=0.03)
    assert not estimate.is_lower_bound
    assert estimate.confidence_ratio is not None
    assert estimate.confidence_ratio < 0.05
    assert estimate.steady_s == 0


def test_a_ramp_in_trains_that_get_longer_tells_it_too() -> None:
    """Slow start of an unpaced sender: the trains double in length, and a cap ends it before any plateau."""
    estimator = followed(in_growing_trains(0.08, 2), 2.4)
    assert estimator.estimate().is_lower_bound
    estimate = estimator.capped_estimate(RTT_S)
    assert estimate.capacity_bps == pytest.approx(LINE_BPS, rel=0.03)


@pytest.mark.parametrize("growth", [2.0, 1.5, 1.15])
@pytest.mark.parametrize("seed", range(5))
def test_trains_that_get_faster_are_a_lower_bound(growth: float, seed: int) -> None:
    """Of a paced sender: half of each round trip, in the next one faster; in slow start twice as fast."""
    faster = in_trains(0.3, lambda time_s: MBIT * growth ** (time_s // RTT_S))
    estimate = followed(faster, 4.0, scatter_ratio=0.1, seed=seed).capped_estimate(RTT_S)
    assert estimate.is_lower_bound
    assert estimate.capacity_bps <= MBIT * growth**6 * 1.1


@pytest.mark.parametrize("busy_s", [0.15, 0.3, 0.45, 0.5])
@pytest.mark.parametrize("lasting_s", [9.0, 8.5, 8.6, 8.7, 8.8])
def test_trains_that_never_grow_are_a_lower_bound(busy_s: float, lasting_s: float) -> None:
    """A window that stays as it is, spread over a part of the round trip: how fast it comes is the sender's choice.

    The last one may be cut short at any moment.
    """
    estimate = followed(in_trains(busy_s), lasting_s, scatter_ratio=0.1).capped_estimate(RTT_S)
    assert estimate.is_lower_bound
    assert estimate.capacity_bps < 0.95 * LINE_BPS
    assert (estimate.steady_s, estimate.confidence_ratio) == (0, None)


def test_where_trains_may_not_be_used_an_idle_line_is_a_lower_bound() -> None:
    """Its figure is the mean."""
    estimator = followed(in_longer_trains(0.3, 0.02), 6.0)
    estimate = estimator.capped_estimate(RTT_S, may_use_trains=False)
    assert estimate.is_lower_bound
    assert estimate.capacity_bps == estimator.estimate().capacity_bps


@pytest.mark.parametrize("seed", range(5))
def test_a_full_line_is_left_as_it_is(seed: int) -> None:
    """Never idle once it is judged: the same with and without a cap, though it came in trains until it was full."""
    estimator = followed(in_growing_trains(0.1, 1.3), 6.9, scatter_ratio=0.05, seed=seed)
    assert waits_for_windows(intervals(estimator._times_s, estimator._bytes), RTT_S)
    assert not estimator.estimate().is_lower_bound
    assert estimator.capped_estimate(RTT_S) == estimator.estimate()


def test_on_a_short_path_gaps_are_the_line_s_own() -> None:
    """Radio that stands still for 50 ms of each 100: the mean is the figure, and no lower bound."""
    estimator = followed(lambda time_s: LINE_BPS if time_s % 0.1 < 0.05 else 0.0, 6.0, rtt_s=0.08, jitter_ratio=0.0)
    assert waits_for_windows(intervals(estimator._times_s, estimator._bytes), 0.08)
    assert estimator.capped_estimate(0.08) == estimator.estimate()
    assert not estimator.estimate().is_lower_bound


def test_after_a_burst_that_was_left_out_trains_tell_nothing() -> None:
    """What comes in gaps fills a token bucket up again: the trains are as fast as its burst, not as its rate."""
    estimator = followed(in_longer_trains(0.3, 0.02), 6.0)
    assert estimator.capped_estimate(RTT_S) != estimator.estimate()
    estimator._burst_left_out = True
    assert estimator.capped_estimate(RTT_S) == estimator.estimate()


def test_radio_that_stalls_is_no_window() -> None:
    """Half a second of silence each 1.5 s on a path of 120 ms: the mean is the figure, and no lower bound."""
    estimator = followed(lambda time_s: LINE_BPS if time_s % 1.5 < 1.0 else 0.0, 9.0, rtt_s=0.12)
    assert estimator.capped_estimate(0.12) == estimator.estimate()
    assert not estimator.estimate().is_lower_bound


def trains(lengths: Sequence[int], gap: int, rates_mbit: Sequence[float] | None = None) -> list[Interval]:
    """Trains of so many intervals, with gaps in between."""
    rates = [24.0] * len(lengths) if rates_mbit is None else rates_mbit
    shapes = zip(lengths, rates, strict=True)
    return parts(*itertools.chain.from_iterable([rate * MBIT] * length + [0.0] * gap for length, rate in shapes))


@pytest.mark.parametrize(
    ("seen", "rtt_s", "shows"),
    [
        (trains([8, 11, 11], 8), 0.6, True),
        (trains([8, 11], 8), 1.0, False),
        (trains([3, 3, 5], 8), 0.6, False),
        (trains([8, 8, 9], 8), 0.6, False),
        (trains([11, 11, 8], 8), 0.6, False),
        (trains([8, 8, 20, 8, 8, 20, 8], 8), 0.6, False),
        (trains([8, 11, 11], 2), 0.6, False),
        (trains([4, 4, 4, 5, 5, 6, 6, 6, 6, 6], 8), 0.35, False),
        (trains([4, 4, 4, 5, 5, 6, 6, 6, 6, 6], 8), 0.45, True),
        (trains([18, 18, 24], 11), 0.6, False),
        (trains([18, 18, 24], 11), 1.1, True),
        (trains([8, 9, 9, 11, 11, 11], 8, [24, 21, 27, 24, 20.5, 27.5]), 0.6, False),
        (trains([8, 9, 9, 11, 11, 11], 8, [20, 20, 20, 24, 24, 24]), 0.6, False),
        (trains([8, 9, 9, 11, 11, 11], 8, [22, 22, 22, 24, 24, 24]), 0.6, True),
    ],
    ids=[
        *("trains", "two are a chance", "too short in sum", "they hardly grew", "they shrank"),
        *("a late sample joined two", "hardly ever idle"),
        *("gaps longer than a round trip", "and shorter", "seldom", "and not so seldom"),
        *("the last ones differ", "the second half is faster", "and hardly faster"),
    ],
)
def test_what_makes_trains(seen: list[Interval], rtt_s: float, shows: bool) -> None:
    """Enough of them, long enough, all as fast, growing, about a round trip apart."""
    assert (inside_trains(seen, rtt_s) is not None) is shows


def test_the_ends_of_a_train_do_not_count() -> None:
    """Its first and last interval began before it, or ended after it."""
    seen = [[18 * MBIT, *[24 * MBIT] * count, 20 * MBIT, *[0.0] * 4] for count in (4, 6, 7)]
    inside = inside_trains(parts(*itertools.chain.from_iterable(seen)), RTT_S)
    assert inside is not None
    assert mean_rate_bps(inside) == pytest.approx(24 * MBIT)


def test_what_is_idle_is_between_trains() -> None:
    """Before the first and after the last one nobody had asked for anything yet, or any more."""
    silence, train = [0.0] * 20, [5 * MBIT] * 10
    assert waits_for_windows(parts(*train, 0.0, 0.0, *train), RTT_S)
    assert not waits_for_windows(parts(*train, 0.0, *train), RTT_S)  # 1 of 21
    assert not waits_for_windows(parts(*silence, *train, 0.0, *train, *silence), RTT_S)
    assert not waits_for_windows(parts(0.0, 0.0), RTT_S)
    assert not waits_for_windows([], RTT_S)


def test_samples_that_come_close_together_are_one_interval() -> None:
    """At the end of a cap they are 5 ms apart: too short for a rate."""
    times_s = [0.0, 0.05, *(0.05 + 0.005 * index for index in range(1, 13))]
    counts = [int(time_s * 1000) for time_s in times_s]
    found = intervals(times_s, counts)
    assert [part.length_s for part in found] == pytest.approx([0.05, 0.045])
    assert sum(part.came_bytes for part in found) == pytest.approx(95, abs=1)


@st.composite
def trains_of(draw: st.DrawFn) -> list[int]:
    """Bytes of each interval: busy and idle ones by turns, for any lengths, at a few rates."""
    came: list[int] = []
    for _ in range(draw(st.integers(1, 8))):
        rates = st.sampled_from((100_000, 90_000, 50_000, 10_000_000))
        came += [draw(rates)] * draw(st.integers(1, 12)) + [0] * draw(st.integers(0, 14))
    return came


@settings(deadline=None)
@given(st.one_of(trains_of(), st.lists(st.integers(min_value=0, max_value=10_000_000), min_size=1, max_size=200)))
def test_any_counts_give_a_figure_between_nothing_and_the_fastest_interval(came: list[int]) -> None:
    """Never an exception, never more than was seen."""
    estimator, total = CapacityEstimator(), 0
    for index, came_bytes in enumerate(came, start=1):
        total += came_bytes
        estimator.add(index * 0.05, total)
        estimator.advise(RTT_S, can_grow=False)
    estimate = estimator.capped_estimate(RTT_S)
    assert 0 <= estimate.capacity_bps <= max(came) * 8 / 0.05 * (1 + 1e-6)
