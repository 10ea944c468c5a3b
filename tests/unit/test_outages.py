"""From probes to outages, by invented rounds: what is up, down and unknown, since when, and where."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.flows.watching.outages import Round, Rules, Segment, State, decided_until_s, place, segments_of
from probe.tasks.availability import OUTAGES_MAX, values_of

RULES = Rules(losses=3, interval_s=1.0, late_s=1.0)
DOWN = [state for state in State if state.is_down]


def rounds_of(words: str, step_s: float = 1.0) -> list[Round]:
    """A letter a second: `.` answered, `x` lost, `lgopu` lost and who is silent, `v` void, `?` pending, ` ` none."""
    rounds = []
    for index, letter in enumerate(words):
        if letter != " ":
            rounds.append(round_of(letter, index * step_s))
    return rounds


def round_of(letter: str, at_s: float) -> Round:
    """One round, and what the levels said in it."""
    one = Round(at_s, answered={".": True, "?": None, "v": None}.get(letter, False), void=letter == "v")
    if letter in "gopu":
        one.local = True
        one.gateway = {"g": False, "u": None}.get(letter, True)
        one.operator = {"p": True, "u": None}.get(letter, False)
    elif letter == "l":
        one.local = False
    return one


def seen(words: str, before: State | None = None) -> list[tuple[float, float, State]]:
    """What was true from when until when, in a window as long as the rounds."""
    segments = segments_of(rounds_of(words), RULES, float(len(words)), before)
    return [(one.start_s, one.end_s, one.state) for one in segments]


def test_a_quiet_window_is_up() -> None:
    """Every packet answered: one segment."""
    assert seen("......") == [(0, 6, State.UP)]


@pytest.mark.parametrize("words", ["..x...", "..xx..", ".x.x.x.xx.", "xx....", "....xx"])
def test_fewer_losses_than_three_are_loss(words: str) -> None:
    """Single and double losses, wherever they stand, are no outage."""
    assert seen(words) == [(0, len(words), State.UP)]


def test_an_outage_begins_with_the_first_loss_and_ends_with_the_next_answer() -> None:
    """To the second of sending, not when it was noticed."""
    assert seen("..xppp...") == [(0, 2, State.UP), (2, 6, State.DOWN_PEER), (6, 9, State.UP)]


@pytest.mark.parametrize(("letter", "state"), list(zip("lgopu", DOWN, strict=True)))
def test_the_place_is_the_nearest_level_that_is_known_to_be_silent(letter: str, state: State) -> None:
    """Interface, gateway, operator, peer; and nobody to tell."""
    assert seen("." + "x" + letter * 3 + ".") == [(0, 1, State.UP), (1, 5, state), (5, 6, State.UP)]


def test_a_level_that_cannot_tell_is_not_blamed() -> None:
    """A silent operator behind a gateway that never answers is the operator's; a peer that refuses is there."""
    assert place(Round(0.0, answered=False, local=True, operator=False)) is State.DOWN_OPERATOR
    assert place(Round(0.0, answered=False, local=True, gateway=True)) is State.DOWN_UNLOCATED
    assert place(Round(0.0, answered=False, local=True, gateway=False, peer_refused=True)) is State.DOWN_PEER
    assert place(Round(0.0, answered=False)) is None


def test_one_unanswered_question_moves_no_outage() -> None:
    """A router that limits its answers to one in two is no operator that goes and comes."""
    assert seen(".ppopopp.") == [(0, 1, State.UP), (1, 8, State.DOWN_PEER), (8, 9, State.UP)]


def test_an_answer_is_surer_than_a_silence() -> None:
    """On a lossy line one round in which the operator answers makes it the peer's outage, whichever comes first."""
    assert seen(".xop.")[1] == seen(".xpo.")[1] == (1, 4, State.DOWN_PEER)


def test_an_outage_that_moves_is_told_by_its_parts() -> None:
    """A modem that restarts: first the cable, then the gateway, then the operator; no time between them is lost."""
    assert seen(".llllgggooo.") == [
        (0, 1, State.UP),
        (1, 5, State.DOWN_LOCAL),
        (5, 8, State.DOWN_GATEWAY),
        (8, 11, State.DOWN_OPERATOR),
        (11, 12, State.UP),
    ]


def test_where_nobody_watched_is_unknown() -> None:
    """A host that stood still for five seconds: a probe speaks for its second, the rest is neither up nor down."""
    assert seen("...     ...") == [(0, 3, State.UP), (3, 8, State.UNKNOWN), (8, 11, State.UP)]
    assert seen("..v     ...") == [(0, 2, State.UP), (2, 8, State.UNKNOWN), (8, 11, State.UP)]
    assert seen("     ...") == [(0, 5, State.UNKNOWN), (5, 8, State.UP)]
    assert segments_of([], RULES, 5.0, None) == [Segment(0.0, 5.0, State.UNKNOWN)]


def test_an_outage_goes_on_after_a_time_of_which_nothing_is_known() -> None:
    """Losses before and after count together, the time between them does not."""
    assert seen("..ooo     oo..") == [
        (0, 2, State.UP),
        (2, 5, State.DOWN_OPERATOR),
        (5, 10, State.UNKNOWN),
        (10, 12, State.DOWN_OPERATOR),
        (12, 14, State.UP),
    ]


def test_an_outage_of_the_window_before_goes_on() -> None:
    """Then one loss is enough, and its place is the one of before until two rounds say another."""
    assert seen("x...", State.DOWN_GATEWAY) == [(0, 1, State.DOWN_GATEWAY), (1, 4, State.UP)]
    assert seen("x...", State.UP) == seen("x...") == [(0, 4, State.UP)]
    assert seen("..x.", State.DOWN_GATEWAY) == [(0, 4, State.UP)]


def test_what_is_sent_after_the_window_decides_its_end() -> None:
    """The last loss of a window is an outage when two more follow, and none when an answer does."""
    assert segments_of(rounds_of("....xpp."), RULES, 5.0, None)[-1].state is State.DOWN_PEER
    assert segments_of(rounds_of("....x..."), RULES, 5.0, None)[-1].state is State.UP


@pytest.mark.parametrize(
    ("words", "went_down", "undecided_s"),
    [
        ("...", False, None),
        ("..x", False, 2.0),
        ("..xx.", False, None),
        ("..xxx", False, None),
        ("..xxx?", False, 5.0),
        ("..x?", False, 2.0),
        ("x", True, None),
        ("x.x", True, 2.0),
        ("..?", False, 2.0),
        ("..vv", False, None),
        ("", False, None),
    ],
)
def test_what_is_not_decided_yet(words: str, went_down: bool, undecided_s: float | None) -> None:
    """From the first round on that may yet be the first of an outage, or no outage."""
    assert decided_until_s(rounds_of(words), RULES, went_down=went_down) == undecided_s


letters = st.text(alphabet=".....xxlgopuv? ", max_size=60)
befores = st.one_of(st.none(), st.sampled_from(list(State)))


@given(words=letters, end_s=st.floats(0.5, 70), before=befores)
def test_every_moment_has_one_state(words: str, end_s: float, before: State | None) -> None:
    """Whatever is answered: segments follow one another from 0 to the end, neighbours differ, all adds up."""
    segments = segments_of(rounds_of(words), RULES, end_s, before)
    assert segments[0].start_s == 0
    assert segments[-1].end_s == pytest.approx(end_s)
    for one, following in itertools.pairwise(segments):
        assert one.end_s == following.start_s
        assert one.state is not following.state
    values = values_of(segments, packets_sent=0, packets_answered=0, gateway_can_tell=True, operator_can_tell=False)
    total_s = values.up_s + values.unknown_s + sum(getattr(values, f"{state}_s") for state in DOWN)
    assert total_s == pytest.approx(end_s)
    assert sum(one.duration_s for one in values.outages) == pytest.approx(total_s - values.up_s - values.unknown_s)
    assert (values.outage_count > 0) == bool(values.outages)


@given(words=st.text(alphabet=".x", min_size=1, max_size=60))
def test_down_is_exactly_the_runs_of_three(words: str) -> None:
    """By another way to count: runs of lost seconds, kept when they are three or longer."""
    runs = [len(run) for run in words.split(".") if len(run) >= 3]
    down = [end_s - start_s for start_s, end_s, state in seen(words) if state.is_down]
    assert down == runs


@given(words=st.text(alphabet=".x", min_size=12, max_size=60), cut=st.integers(5, 55))
def test_two_windows_say_the_same_as_one(words: str, cut: int) -> None:
    """An outage that is cut in two by the end of a window is as long as it was, wherever the cut falls.

    The first window looks three rounds ahead; the second knows how the first ended.
    """
    cut = min(cut, len(words) - 3)
    first = segments_of(rounds_of(words), RULES, float(cut), None)
    second = segments_of(rounds_of(words[cut:]), RULES, float(len(words) - cut), first[-1].state)
    apart_s = down_s(first) + down_s(second)
    assert apart_s == pytest.approx(down_s(segments_of(rounds_of(words), RULES, float(len(words)), None)))


def down_s(segments: Sequence[Segment]) -> float:
    """How long the line was down."""
    return sum(one.length_s for one in segments if one.state.is_down)


def test_samples_say_what_was_not_seen_of_them() -> None:
    """Beginning before the window, ending after it, or cut off where nobody watched."""
    segments = segments_of(rounds_of("ooo..ppp     pp...gggg"), RULES, 22.0, State.DOWN_OPERATOR)
    values = values_of(segments, packets_sent=17, packets_answered=5, gateway_can_tell=True, operator_can_tell=True)
    flags = [(one.offset_s, one.duration_s, one.open_at_start, one.open_at_end) for one in values.outages]
    assert flags == [(0, 3, True, False), (5, 3, False, True), (13, 2, True, False), (18, 4, False, True)]
    assert [one.packets_lost for one in values.outages] == [3, 3, 2, 4]
    assert [one.gateway_answered for one in values.outages] == [True, True, True, False]
    assert (values.outage_count, values.longest_outage_s) == (4, 4)
    assert (values.state_at_start, values.state_at_end) == (State.DOWN_OPERATOR, State.DOWN_GATEWAY)


def test_a_moving_outage_counts_once() -> None:
    """Its parts are samples, its length is that of all of them."""
    segments = segments_of(rounds_of(".llllgggooo."), RULES, 12.0, None)
    values = values_of(segments, packets_sent=8, packets_answered=2, gateway_can_tell=True, operator_can_tell=True)
    assert (len(values.outages), values.outage_count, values.longest_outage_s) == (3, 1, 10)
    assert not any(one.open_at_start or one.open_at_end for one in values.outages)


def test_a_line_that_flaps_for_an_hour_fills_no_report() -> None:
    """Beyond 64 samples the rest is counted; the times are of all."""
    segments = segments_of(rounds_of(".ooo" * 900), RULES, 3600.0, None)
    values = values_of(segments, packets_sent=3600, packets_answered=900, gateway_can_tell=True, operator_can_tell=True)
    assert len(values.outages) == OUTAGES_MAX
    assert values.outages_left_out == 900 - OUTAGES_MAX
    assert (values.outage_count, values.down_operator_s) == (900, 2700)
