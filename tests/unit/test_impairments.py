"""Chance on the emulated line: delay variation of known figures, loss in runs of known length, rates that change."""

from __future__ import annotations

import itertools
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_controller.lab.impairments import Jitter, Lottery, level_at
from fleet_controller.lab.profile import LinkProfile, RateStep, RateWander
from fleet_controller.lab.rates import RatePlan, least_ratio, mean_bps, rate_plan

MS = 1_000_000
S = 1_000_000_000


def plan_of(profile: LinkProfile, seed: int = 1) -> RatePlan:
    """The plan of the download."""
    plan = rate_plan(profile, "download", seed)
    assert plan is not None
    return plan


@given(st.integers(0, 2**32), st.lists(st.integers(0, 60 * MS), min_size=2, max_size=200))
def test_jitter_keeps_the_order_and_its_bounds(seed: int, gaps_ns: list[int]) -> None:
    """However packets are spaced, none overtakes another, and none is off by more than half the width."""
    jitter = Jitter(4 * MS, seed)
    now_ns, last_ns = 0, -S
    for gap_ns in gaps_ns:
        now_ns += gap_ns
        deviation_ns = jitter.at(now_ns)
        assert abs(deviation_ns) <= 2 * MS
        assert now_ns + deviation_ns >= last_ns
        last_ns = now_ns + deviation_ns


def test_the_jitter_stands_at_both_ends_and_in_the_middle() -> None:
    """A fifth of its cycle each: this is why its median and its percentiles are known without a sample size."""
    levels = [level_at(number / 10_000) for number in range(10_000)]
    for stand in (0.0, 0.5, 1.0):
        assert sum(abs(level - stand) < 1e-9 for level in levels) == pytest.approx(2000, abs=10)
    assert statistics.mean(levels) == pytest.approx(0.5, abs=0.001)
    assert max(abs(after - before) for before, after in itertools.pairwise(levels)) < 1e-3


@pytest.mark.parametrize("spacing_ms", [0.5, 7.0, 20.0, 100.0, 1500.0])
@pytest.mark.parametrize("packets", [100, 1000])
def test_median_and_pdv_are_the_configured_ones(spacing_ms: float, packets: int) -> None:
    """Of 50 series, dense or sparse, nearly all have a median of exactly 0 and a p95 - minimum of exactly the width."""
    chance = random.Random(5)  # noqa: S311 - a reproducible test
    exact = 0
    for seed in range(50):
        jitter, now_ns = Jitter(10 * MS, seed), 0
        seen: list[int] = []
        while len(seen) < packets or now_ns < 2 * S:  # ten cycles at least
            now_ns += round(spacing_ms * chance.uniform(0.9, 1.1) * MS)
            seen.append(jitter.at(now_ns))
        seen.sort()
        p95_ns = seen[-(-len(seen) * 95 // 100) - 1]
        exact += statistics.median_low(seen) == 0 and p95_ns - seen[0] == 10 * MS
    assert exact >= 48


@pytest.mark.parametrize(("ratio", "burst"), [(0.01, 1), (0.2, 1), (0.01, 4), (0.1, 10)])
def test_losses_have_their_share_and_their_runs(ratio: float, burst: float) -> None:
    """Over 400,000 packets, asked for in uneven portions: the share within 5 standard deviations, runs of the mean."""
    lottery, chance = Lottery(ratio, 1, burst), random.Random(2)  # noqa: S311 - a reproducible test
    hit: list[int] = []
    passed = 0
    while passed < 400_000:
        portion = chance.randrange(1, 60)
        hit += [passed + position for position in lottery.hits(portion)]
        passed += portion
    expected = ratio * passed
    assert len(hit) == pytest.approx(expected, abs=5 * (expected * 2 * burst) ** 0.5)
    runs = len(hit) - sum(after - before == 1 for before, after in itertools.pairwise(hit))
    mean = burst if burst > 1 else 1 / (1 - ratio)  # independent losses neighbour each other by chance
    assert len(hit) / runs == pytest.approx(mean, rel=0.1)


def test_a_lottery_without_a_chance_hits_nothing() -> None:
    """And one of certainty everything."""
    assert Lottery(0.0, 1).hits(1000) == []
    assert Lottery(1.0, 1).hits(5) == [0, 1, 2, 3, 4]


def test_steps_take_turns_and_their_mean_is_the_time_average() -> None:
    """6 s at 80, 2 s at 20 Mbit/s: an average of 65, of which any part can be told."""
    profile = LinkProfile(80_000_000, 80_000_000, 0.0, rate_steps=(RateStep(6, 1.0), RateStep(2, 0.25)))
    plan = plan_of(profile)
    assert [plan.at(second * S)[0] for second in (0, 5, 6, 7, 8, 14)] == [80e6, 80e6, 20e6, 20e6, 80e6, 20e6]
    assert mean_bps(plan, 0, 16 * S) == 65e6
    assert mean_bps(plan, 5 * S, 7 * S) == 50e6
    assert least_ratio(profile) == 0.25
    with pytest.raises(ValueError, match="no interval"):
        mean_bps(plan, 5, 5)


def test_a_wandering_rate_has_the_configured_mean_and_spread_and_is_the_same_again() -> None:
    """Over 2,000 s: mean within 5 %, variation of 25 % within a tenth, neighbours correlated; the same for a seed."""
    wander = RateWander(variation_ratio=0.25, correlation_ratio=0.8, step_s=0.25)
    profile = LinkProfile(100_000_000, 100_000_000, 0.0, rate_wander=wander)
    rates = [plan_of(profile, 3).at(step * S // 4)[0] for step in range(50)]
    plan = plan_of(profile, 3)
    again = [plan.at(step * S // 4)[0] for step in range(8000)]
    assert rates == again[:50]
    assert statistics.mean(again) == pytest.approx(100e6, rel=0.05)
    assert statistics.pstdev(again) == pytest.approx(25e6, rel=0.1)
    assert statistics.correlation(again[:-1], again[1:]) == pytest.approx(0.8, abs=0.05)
    assert min(again) >= 20e6 * 0.999
    assert [plan_of(profile, 4).at(step * S // 4)[0] for step in range(50)] != again[:50]
