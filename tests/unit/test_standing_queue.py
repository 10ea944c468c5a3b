"""What is said to wait at the bottleneck, from round trips alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.flows.bulk.standing_queue import StandingQueue

RTT_MIN_S = 0.01


def seen(*samples: tuple[float, list[float]]) -> StandingQueue:
    """After these samples: (moment, the streams' round trips)."""
    queue = StandingQueue()
    for time_s, round_trips_s in samples:
        queue.add(time_s, round_trips_s)
    return queue


def test_nothing_is_known_before_the_first_sample() -> None:
    """No queue, and none stands."""
    assert StandingQueue().lately_s(RTT_MIN_S) == 0
    assert not StandingQueue().stands(RTT_MIN_S)
    assert seen((1.0, [])).lately_s(RTT_MIN_S) == 0


def test_the_stream_that_waits_least_decides() -> None:
    """What one of them waits longer for is not the line's common queue."""
    assert seen((1.0, [0.05, 0.03, 0.09])).lately_s(RTT_MIN_S) == pytest.approx(0.02)


def test_a_queue_that_empties_in_between_does_not_stand() -> None:
    """One short sample of eight within 400 ms is enough; once it is older than that it is forgotten."""
    samples = [(0.05 * index, [0.03]) for index in range(8)]
    assert seen(*samples).stands(RTT_MIN_S)
    emptied = [(0.05 * index, [0.015 if index == 2 else 0.03]) for index in range(10)]
    assert not seen(*emptied).stands(RTT_MIN_S)
    assert seen(*emptied, (0.55, [0.03])).stands(RTT_MIN_S)


def test_a_line_s_jitter_is_no_standing_queue() -> None:
    """Round trips half as long again as the least."""
    assert not seen((1.0, [0.015, 0.016])).stands(RTT_MIN_S)


def test_on_the_shortest_paths_a_queue_is_a_few_milliseconds() -> None:
    """A receiver's kernel says whole milliseconds: with a least round trip of 0.3 ms, one more would always stand."""
    assert not seen((1.0, [0.0013])).stands(0.0003)
    assert seen((1.0, [0.003])).stands(0.0003)


def test_lately_forgets_sooner() -> None:
    """What waited in the last two samples counts, whether they are 50 or 100 ms apart."""
    assert seen((1.0, [0.012]), (1.05, [0.03]), (1.1, [0.03]), (1.15, [0.04])).lately_s(RTT_MIN_S) == pytest.approx(
        0.02
    )
    assert seen((1.0, [0.012]), (1.1, [0.03]), (1.2, [0.04])).lately_s(RTT_MIN_S) == pytest.approx(0.02)
    assert seen((1.0, [0.03]), (1.05, [0.012])).lately_s(RTT_MIN_S) == pytest.approx(0.002)


@given(st.lists(st.lists(st.floats(0.0, 5.0), max_size=4), max_size=20), st.floats(0.0, 5.0))
def test_no_time_is_waited_backwards(samples: list[list[float]], rtt_min_s: float) -> None:
    """Whatever the kernel says of the least and of the present."""
    queue = seen(*[(0.05 * index, round_trips_s) for index, round_trips_s in enumerate(samples)])
    assert queue.lately_s(rtt_min_s) >= 0
