"""For how long streams may be left alone: whatever happens in a pause, the line has something to carry."""

from __future__ import annotations

import dataclasses
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.flows.bulk.pauses import PAUSE_FIRST_S, PAUSE_MIN_S, PAUSE_S_MAX, Lasting, Phase, first_pause_s, pause_s

RISING = Phase(direction="download", rtt_s=0.004, queue_s=0.0, is_capped=False, is_calm=False, is_level=False)
LEVEL = dataclasses.replace(RISING, is_level=True)
CALM = dataclasses.replace(LEVEL, is_calm=True)
UPLOAD_RISING = dataclasses.replace(RISING, direction="upload")
CAPPED = dataclasses.replace(CALM, is_capped=True)
PHASES = st.builds(
    Phase,
    direction=st.sampled_from(["download", "upload"]),
    rtt_s=st.floats(0.0, 1.0),
    queue_s=st.floats(0.0, 2.0),
    is_capped=st.booleans(),
    is_calm=st.booleans(),
    is_level=st.booleans(),
)
STREAMS = st.lists(st.builds(Lasting, st.floats(0.0, 20.0), st.floats(0.0, float("inf"))), max_size=16)


def grown(*lasts_s: float) -> list[Lasting]:
    """Streams of a second that last for so long each."""
    return [Lasting(1.0, one_s) for one_s in lasts_s]


@pytest.mark.parametrize(
    ("phase", "lasts_s", "expected_s"),
    [
        (RISING, 0.02, 0.005),
        (LEVEL, 0.02, 0.01),
        (CALM, 0.02, 0.01),
        (RISING, 10.0, 0.015),
        (LEVEL, 10.0, 0.03),
        (CALM, 10.0, PAUSE_S_MAX),
        (CAPPED, 10.0, 0.004),
        (CALM, 0.0, PAUSE_MIN_S),
    ],
)
def test_the_more_is_known_the_longer_a_pause(phase: Phase, lasts_s: float, expected_s: float) -> None:
    """A quarter of what the streams last while the rate rises, then half; never beyond what the phase bears."""
    assert pause_s(phase, grown(lasts_s)) == pytest.approx(expected_s)


def test_the_stream_that_lasts_least_decides() -> None:
    """The fastest of four must not run dry for the sake of the others."""
    assert pause_s(CALM, grown(0.08, 0.02, 0.06, 0.08)) == pytest.approx(0.01)


def test_a_stream_that_begins_later_does_not_hurry_the_others() -> None:
    """After four more were added the first four decide; but it is not calm before all have grown."""
    young = [Lasting(0.05, 0.001)] * 4
    assert pause_s(CALM, [*grown(*[0.04] * 4), *young]) == pytest.approx(0.02)
    assert pause_s(CALM, [*grown(*[10.0] * 4), *young]) == pytest.approx(0.03)
    assert pause_s(CALM, [*grown(*[10.0] * 4), *[Lasting(0.31, 10.0)] * 4]) == pytest.approx(PAUSE_S_MAX)


@pytest.mark.parametrize("oldest_s", [0.05, 0.29, 0.31])
def test_streams_of_one_stage_count_together(oldest_s: float) -> None:
    """They began within 30 ms of each other: the first one alone must not decide, at whatever age it is."""
    stage = [Lasting(oldest_s - 0.01 * index, 0.06 if index == 0 else 0.02) for index in range(3)]
    assert pause_s(LEVEL, stage) == pytest.approx(0.01)


@pytest.mark.parametrize(("rtt_s", "least_s"), [(0.0001, PAUSE_MIN_S), (0.004, 0.004), (0.3, 0.015)])
def test_a_send_buffer_lasts_a_round_trip_of_slow_start(rtt_s: float, least_s: float) -> None:
    """While an upload's rate rises, a pause is a round trip at least: what waits there is several windows."""
    phase = dataclasses.replace(UPLOAD_RISING, rtt_s=rtt_s)
    assert pause_s(phase, grown(0.0)) == pytest.approx(least_s)
    assert first_pause_s(phase) == pytest.approx(max(least_s, PAUSE_FIRST_S))


def test_what_waits_at_the_bottleneck_lets_an_upload_wait_longer() -> None:
    """Three quarters of that are added, of 30 ms at most: the line stays busy while the stream has nothing to send.

    But no more than any stream lasts: a socket that holds little cannot make up for it afterwards.
    """
    upload = dataclasses.replace(CALM, direction="upload")
    for queue_s, expected_s in ((0.0, 0.015), (0.02, 0.03), (0.03, 0.0375), (1.0, 0.0375)):
        assert pause_s(dataclasses.replace(upload, queue_s=queue_s), grown(0.03)) == pytest.approx(expected_s)
    full = dataclasses.replace(upload, queue_s=0.02)
    assert pause_s(full, grown(0.004, 0.004)) == pytest.approx(0.006)
    assert pause_s(full, grown(0.0, 0.03)) == pytest.approx(0.015), "one that is held up does not hurry the others"
    assert pause_s(full, grown(0.0)) == PAUSE_MIN_S
    rising = dataclasses.replace(UPLOAD_RISING, queue_s=0.008)
    assert pause_s(rising, grown(0.0)) == pytest.approx(0.012), "a round trip is as long as it is now"


@pytest.mark.parametrize("phase", [RISING, LEVEL, CALM])
def test_a_full_line_empties_no_receive_window(phase: Phase) -> None:
    """A download waits as before: a window that is full stops the peer."""
    assert pause_s(dataclasses.replace(phase, queue_s=0.02), grown(0.02)) == pause_s(phase, grown(0.02))


@given(PHASES, st.floats(0.001, 0.1), st.floats(0.0, 2.0))
def test_a_look_that_comes_late_finds_the_line_busy(phase: Phase, lasts_s: float, queue_s: float) -> None:
    """By half of what a stream lasts and a quarter of the queue."""
    calm = dataclasses.replace(phase, is_calm=True, is_level=True, queue_s=queue_s)
    there_s = lasts_s + (queue_s if calm.direction == "upload" else 0.0)
    late_s = lasts_s / 2 + (queue_s / 4 if calm.direction == "upload" else 0.0)
    wanted_s = pause_s(calm, grown(lasts_s))
    assert wanted_s <= PAUSE_MIN_S or wanted_s + late_s <= there_s + 1e-9


def test_a_receive_window_may_be_full_at_once() -> None:
    """While a download's rate rises, what is on its way may need all of its window, however long the round trip."""
    phase = dataclasses.replace(RISING, rtt_s=0.3)
    assert pause_s(phase, grown(0.0)) == PAUSE_MIN_S
    assert first_pause_s(phase) == PAUSE_FIRST_S


@pytest.mark.parametrize("direction", ["download", "upload"])
def test_with_a_cap_nothing_may_be_late(direction: Literal["download", "upload"]) -> None:
    """Before it is calm, the shortest pause, whatever the streams last."""
    phase = dataclasses.replace(CAPPED, direction=direction, is_calm=False)
    assert pause_s(phase, grown(10.0)) == PAUSE_MIN_S
    assert first_pause_s(phase) == PAUSE_MIN_S


@given(PHASES, STREAMS)
def test_a_pause_is_never_absurd(phase: Phase, streams: list[Lasting]) -> None:
    """Whatever the kernel says, and with no stream at all: between the shortest and the longest."""
    assert PAUSE_MIN_S <= first_pause_s(phase) <= PAUSE_S_MAX
    assert PAUSE_MIN_S <= pause_s(phase, streams) <= PAUSE_S_MAX
