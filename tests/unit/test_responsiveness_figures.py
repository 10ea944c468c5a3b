"""Responsiveness: the draft's formulas and stages, on made-up probes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.flows.load.responsiveness import (
    Confidence,
    ForeignProbe,
    SelfProbe,
    WorkingConditions,
    is_settled,
    responsiveness_of,
    trimmed_mean,
)


def test_the_trimmed_mean_leaves_out_the_slowest_twentieth() -> None:
    """Of 20 values one goes, the largest; of fewer none does, because a twentieth of them is less than one."""
    assert trimmed_mean([0.1] * 19 + [9.0]) == pytest.approx(0.1)
    assert trimmed_mean([0.1] * 39 + [9.0]) == pytest.approx(0.1)
    assert trimmed_mean([0.4]) == pytest.approx(0.4)
    assert trimmed_mean([]) is None


@given(st.lists(st.floats(min_value=1e-4, max_value=10), min_size=1, max_size=200))
def test_the_trimmed_mean_lies_between_the_least_and_the_plain_mean(values: list[float]) -> None:
    """Leaving out large values can only lower a mean, and never below the smallest."""
    found = trimmed_mean(values)
    assert found is not None
    assert min(values) * (1 - 1e-9) <= found <= sum(values) / len(values) * (1 + 1e-9)


def test_without_tls_the_two_foreign_times_weigh_the_same() -> None:
    """100 ms of handshake and 300 ms of request are 200 ms: 300 a minute; 50 ms on the load is 1200: 750 together."""
    found = responsiveness_of([ForeignProbe(0, tcp_s=0.1, http_s=0.3)], [SelfProbe(0, 0.05)])
    assert found.foreign_rpm == pytest.approx(300)
    assert found.self_rpm == pytest.approx(1200)
    assert found.rpm == pytest.approx(750)
    assert found.tls_s is None


def test_with_tls_the_three_foreign_times_weigh_the_same() -> None:
    """(100 + 200 + 300) / 3 ms are 300 a minute."""
    found = responsiveness_of([ForeignProbe(0, tcp_s=0.1, tls_s=0.2, http_s=0.3)], [SelfProbe(0, 0.2)])
    assert found.foreign_rpm == pytest.approx(300)
    assert found.rpm == pytest.approx(300)


def test_a_part_that_is_missing_leaves_the_whole_absent() -> None:
    """Half a responsiveness is none: no number is made up for what was not measured."""
    assert responsiveness_of([], [SelfProbe(0, 0.2)]).rpm is None
    only_foreign = responsiveness_of([ForeignProbe(0, tcp_s=0.1, http_s=0.1)], [])
    assert only_foreign.rpm is None
    assert only_foreign.foreign_rpm == pytest.approx(600)


@pytest.mark.parametrize(
    ("values", "settled"),
    [
        ([100.0, 100.0, 100.0], False),
        ([100.0, 100.0, 100.0, 100.0], True),
        ([10.0, 100.0, 101.0, 99.0, 100.0], True),
        ([80.0, 90.0, 100.0, 110.0], False),
        ([0.0, 0.0, 0.0, 0.0], False),
    ],
)
def test_settled_is_a_deviation_of_five_percent_over_four_values(values: list[float], *, settled: bool) -> None:
    """Fewer than four say nothing, older ones are forgotten, a rise is not settled, and neither is nothing at all."""
    assert is_settled(values) is settled


def loaded(rates_bps: list[float], round_trips_s: list[float]) -> WorkingConditions:
    """A load of one-second intervals with those rates, in each of which every round trip took as long."""
    conditions = WorkingConditions(0.0, 1.0)
    total_bytes = 0.0
    for second, (rate_bps, round_trip_s) in enumerate(zip(rates_bps, round_trips_s, strict=True)):
        for tenth in range(10):
            at_s = second + tenth / 10
            conditions.add_foreign(ForeignProbe(at_s, round_trip_s, round_trip_s))
            conditions.add_own(SelfProbe(at_s, round_trip_s))
        total_bytes += rate_bps / 8
        if conditions.end_interval(second + 1.0, int(total_bytes)):
            break
    return conditions


def test_goodput_settles_first_and_then_the_responsiveness() -> None:
    """Four equal averages end the first stage, four equal responsivenesses after that the second: 8 intervals."""
    conditions = loaded([8e6] * 20, [0.1] * 20)
    verdict = conditions.verdict()
    assert conditions.intervals == 8
    assert verdict.load_bps == pytest.approx(8e6)
    assert (verdict.load_confidence, verdict.confidence) == (Confidence.HIGH, Confidence.HIGH)
    assert verdict.responsiveness.rpm == pytest.approx(600)


def test_a_filling_buffer_is_waited_for() -> None:
    """While round trips still grow nothing is settled, and the figure is that of the full buffer."""
    conditions = loaded([8e6] * 30, [0.05 + 0.05 * min(second, 12) for second in range(30)])
    verdict = conditions.verdict()
    assert verdict.confidence is Confidence.HIGH
    assert verdict.responsiveness.rpm == pytest.approx(60 / 0.65, rel=0.06)


def test_a_short_load_is_of_low_confidence() -> None:
    """Three intervals are no basis, and the result says so instead of keeping silent."""
    verdict = loaded([8e6] * 3, [0.1] * 3).verdict()
    assert (verdict.load_confidence, verdict.confidence) == (Confidence.LOW, Confidence.LOW)
    assert verdict.responsiveness.rpm == pytest.approx(600)


def test_a_line_that_wanders_is_of_medium_confidence() -> None:
    """A rate that doubles and halves never settles: the load's stage ends as `medium`, the other never began."""
    verdict = loaded([1e6 * 4 ** (second % 6) for second in range(20)], [0.1] * 20).verdict()
    assert (verdict.load_confidence, verdict.confidence) == (Confidence.MEDIUM, Confidence.LOW)


def test_only_the_last_four_intervals_count() -> None:
    """The empty line's first, quick round trips are not part of the figure."""
    conditions = loaded([8e6] * 12, [0.01] * 4 + [0.2] * 8)
    assert conditions.verdict().responsiveness.rpm == pytest.approx(300)
    assert conditions.window_s == (conditions.intervals - 4.0, float(conditions.intervals))


def test_nothing_at_all_has_no_figure() -> None:
    """A load that ended before its first interval: no rate, no responsiveness, low confidence."""
    verdict = WorkingConditions(0.0, 1.0).verdict()
    assert verdict.responsiveness.rpm is None
    assert verdict.load_bps is None
    assert verdict.confidence is Confidence.LOW


@pytest.mark.parametrize("round_trip_s", [0.2, 0.8, 1.3, 2.5])
def test_a_slow_answer_counts_when_it_comes(round_trip_s: float) -> None:
    """Ten requests a second, each answered after two round trips: no depth of buffer hides the slow ones."""
    conditions = WorkingConditions(0.0, 0.5)
    asked_s, total_bytes = 0.0, 0
    for interval in range(1, 40):
        now_s = interval * 0.5
        while asked_s + 2 * round_trip_s <= now_s:
            conditions.add_foreign(ForeignProbe(asked_s + 2 * round_trip_s, round_trip_s, round_trip_s))
            asked_s += 0.1
        conditions.add_own(SelfProbe(now_s, round_trip_s))
        total_bytes += 500_000
        if conditions.end_interval(now_s, total_bytes):
            break
    verdict = conditions.verdict()
    assert verdict.confidence is Confidence.HIGH
    assert verdict.responsiveness.rpm == pytest.approx(60 / round_trip_s, rel=0.01)
    assert verdict.responsiveness.probes >= 15
