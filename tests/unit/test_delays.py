from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.flows.echo.delays import (
    Arrival,
    Counts,
    DelaySummary,
    LossPattern,
    LossSplit,
    count,
    loss_pattern,
    quantile,
    split_loss,
    summarise,
)

MS = 1_000_000


def arrivals(*numbers: int) -> list[Arrival]:
    """Replies to these packets in this order, 10 ms each."""
    return [Arrival(number, 10 * MS) for number in numbers]


def of_delays(*delays_ms: float | None) -> list[Arrival]:
    """Packets 1, 2, … in order, with these delays."""
    return [Arrival(i, None if delay is None else round(delay * MS)) for i, delay in enumerate(delays_ms, start=1)]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ([], Counts(received=0, duplicated=0, reordered=0, delays_rejected=0)),
        ([1, 2, 3], Counts(received=3, duplicated=0, reordered=0, delays_rejected=0)),
        ([1, 3, 4], Counts(received=3, duplicated=0, reordered=0, delays_rejected=0)),
        ([1, 1, 2, 2, 2], Counts(received=2, duplicated=3, reordered=0, delays_rejected=0)),
        ([1, 3, 2, 4], Counts(received=4, duplicated=0, reordered=1, delays_rejected=0)),
        # RFC 4737 section 4.2.3's way of counting: one late packet is one reordering, one early packet makes many.
        ([5, 1, 2, 3, 4], Counts(received=5, duplicated=0, reordered=4, delays_rejected=0)),
        ([1, 2, 3, 1], Counts(received=3, duplicated=1, reordered=0, delays_rejected=0)),
    ],
)
def test_counts(order: list[int], expected: Counts) -> None:
    """Duplicates and reordering are told apart, and a loss is neither."""
    assert count(arrivals(*order)) == expected


def test_a_reply_without_a_delay_is_still_received() -> None:
    """A sample whose clock was stepped is no loss: it is counted, and counted as rejected."""
    series = of_delays(10, None, 12)
    assert count(series) == Counts(received=3, duplicated=0, reordered=0, delays_rejected=1)
    assert summarise(series).max_s == 0.012


def test_summary_worked_by_hand() -> None:
    """Ten delays in ms: 10 12 11 15 10 14 10 13 30 10."""
    summary = summarise(of_delays(10, 12, 11, 15, 10, 14, 10, 13, 30, 10))
    assert summary.min_s == 0.010
    assert summary.median_s == pytest.approx(0.0115)  # of 10 10 10 10 11 | 12 13 14 15 30
    assert summary.p95_s == 0.030  # the 10th of 10: nine are only 90 %
    assert summary.max_s == 0.030
    assert summary.mean_s == pytest.approx(0.0135)
    assert summary.pdv_s == pytest.approx(0.020)
    # Steps: 2 1 4 5 4 4 3 17 20, together 60 over 9 pairs.
    assert summary.ipdv_mean_abs_s == pytest.approx(0.060 / 9)


def test_nothing_received_has_no_delay() -> None:
    """Absent, not zero: an average of no packets is not 0.0 ms."""
    assert summarise([]) == DelaySummary()
    assert summarise(of_delays(None, None)) == DelaySummary()


def test_one_packet_has_a_delay_but_no_variation() -> None:
    """A single sample says nothing about jitter."""
    summary = summarise(of_delays(10))
    assert (summary.min_s, summary.p95_s, summary.mean_s) == (0.010, 0.010, 0.010)
    assert summary.pdv_s is None
    assert summary.ipdv_mean_abs_s is None


def test_a_loss_breaks_the_pairs_on_both_sides() -> None:
    """IPDV is of neighbours in sending order: without packet 3, the pairs are (1,2) and (4,5)."""
    series = [Arrival(1, 10 * MS), Arrival(2, 11 * MS), Arrival(4, 30 * MS), Arrival(5, 33 * MS)]
    assert summarise(series).ipdv_mean_abs_s == pytest.approx(0.002)


def test_reordered_arrivals_are_paired_in_sending_order() -> None:
    """Who overtakes whom does not change the neighbours."""
    series = [Arrival(2, 12 * MS), Arrival(1, 10 * MS), Arrival(3, 13 * MS)]
    assert summarise(series).ipdv_mean_abs_s == pytest.approx(0.0015)


def test_only_the_first_of_duplicates_has_a_delay() -> None:
    """The delay of a packet is that of its first reply."""
    assert summarise([Arrival(1, 10 * MS), Arrival(1, 90 * MS)]).max_s == 0.010


@pytest.mark.parametrize(
    ("size", "rank"), [(1, 1), (2, 2), (10, 10), (19, 19), (20, 19), (21, 20), (100, 95), (101, 96)]
)
def test_p95_is_the_smallest_that_95_percent_do_not_exceed(size: int, rank: int) -> None:
    """Exact ranks, at the sizes where an off-by-one shows (RFC 2330 section 11.3)."""
    assert quantile(list(range(1, size + 1)), 0.95) == rank


@given(st.lists(st.integers(min_value=0, max_value=10**10), min_size=1, max_size=60), st.randoms())
def test_summary_properties(delays: list[int], rng: random.Random) -> None:
    """Order of the figures, the range of the sample, and no effect of the order of arrival."""
    series = [Arrival(number, delay) for number, delay in enumerate(delays)]
    summary = summarise(series)
    figures = (summary.min_s, summary.median_s, summary.p95_s, summary.max_s)
    assert all(figure is not None for figure in (*figures, summary.mean_s))
    assert list(figures) == sorted(figures, key=lambda figure: figure or 0)
    assert (summary.min_s, summary.max_s) == (min(delays) / 1e9, max(delays) / 1e9)
    assert summary.min_s <= (summary.mean_s or 0) <= summary.max_s  # type: ignore[operator]  # all present, see above
    shuffled = series[:]
    rng.shuffle(shuffled)
    other = summarise(shuffled)
    assert math.isclose(other.ipdv_mean_abs_s or 0, summary.ipdv_mean_abs_s or 0, rel_tol=1e-9)
    assert (other.median_s, other.p95_s, other.pdv_s) == (summary.median_s, summary.p95_s, summary.pdv_s)


def through_network(sent: int, lost_forward: set[int], lost_backward: set[int]) -> list[Arrival]:
    """What comes back of packets 1..`sent` from a stateful reflector over a network that loses these."""
    reached = [number for number in range(1, sent + 1) if number not in lost_forward]
    answers = [Arrival(number, 10 * MS, theirs) for theirs, number in enumerate(reached)]
    return [answer for answer in answers if answer.sequence not in lost_backward]


TEN = range(1, 11)


@pytest.mark.parametrize(
    ("forward", "backward", "expected"),
    [
        (set(), set(), LossSplit(0, 0, 0)),
        ({3, 4}, set(), LossSplit(2, 0, 0)),
        (set(), {3, 4}, LossSplit(0, 2, 0)),
        ({1}, {2, 5}, LossSplit(1, 2, 0)),
        # The last answered packet is 8: on which way 9 and 10 went missing, nobody knows.
        ({9}, {10}, LossSplit(0, 0, 2)),
        ({2, 9, 10}, {3}, LossSplit(1, 1, 2)),
    ],
)
def test_loss_is_split_by_way(forward: set[int], backward: set[int], expected: LossSplit) -> None:
    """A stateful reflector's numbers tell on which way a packet went missing."""
    assert split_loss(TEN, through_network(10, forward, backward)) == expected


def test_a_packet_that_was_never_sent_was_not_lost_on_the_way() -> None:
    """The kernel took 1, 2, 5 and 6, of which 5 was lost on the way there: 3 and 4 are in no count."""
    series = [Arrival(1, MS, 0), Arrival(2, MS, 1), Arrival(6, MS, 2)]
    assert split_loss([1, 2, 5, 6], series) == LossSplit(1, 0, 0)


def test_a_packet_doubled_on_the_way_there_does_not_hide_a_loss() -> None:
    """Packet 2 reaches the reflector twice, packet 3 never: one lost forward, none backward."""
    series = [Arrival(1, MS, 0), Arrival(2, MS, 1), Arrival(2, MS, 2), Arrival(4, MS, 3)]
    assert split_loss(range(1, 5), series) == LossSplit(1, 0, 0)


def test_a_reply_doubled_on_the_way_back_changes_nothing() -> None:
    """The same reply twice is one reply."""
    series = [Arrival(1, MS, 0), Arrival(2, MS, 1), Arrival(2, MS, 1), Arrival(4, MS, 2)]
    assert split_loss(range(1, 5), series) == LossSplit(1, 0, 0)


@pytest.mark.parametrize(
    "series",
    [
        [],
        # Stateless: our own numbers come back, and nothing follows from them.
        [Arrival(1, MS, 1), Arrival(3, MS, 3)],
        # ICMP echo: no numbers of the peer at all.
        [Arrival(1, MS), Arrival(3, MS)],
        # A reflector that goes on with an earlier session's count.
        [Arrival(1, MS, 500), Arrival(3, MS, 501)],
        # Two replies under one number: a count that cannot be.
        [Arrival(1, MS, 0), Arrival(2, MS, 0), Arrival(3, MS, 0)],
    ],
)
def test_no_split_without_a_count_to_trust(series: list[Arrival]) -> None:
    """Absent, rather than a guess."""
    assert split_loss(range(1, 4), series) is None


TRAVELS = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 9), st.sampled_from(["arrives", "lost there", "lost back", "twice"])),
    min_size=1,
    max_size=40,
)


def over_time(travels: list[tuple[int, int, str]], restarts_at: int | None = None) -> list[Arrival]:
    """What comes back of one packet per moment, each with its moments there and back, which let packets overtake.

    From `restarts_at` on another reflector answers, that counts from 0.
    """
    reached = [(sent + there, sent, back, fate) for sent, (there, back, fate) in enumerate(travels, 1)]
    reached += [(at + 1, sent, back, fate) for at, sent, back, fate in reached if fate == "twice"]
    reached = sorted(one for one in reached if one[3] != "lost there")
    before = sum(restarts_at is not None and at < restarts_at for at, *_ in reached)
    numbers = [*range(before), *range(len(reached) - before)]
    answers = [
        (at + back, sent, theirs)
        for theirs, (at, sent, back, fate) in zip(numbers, reached, strict=True)
        if fate != "lost back"
    ]
    # What comes back at the moment in which a packet leaves is read before it.
    return [Arrival(sent, MS, theirs, min(at - 1, len(travels))) for at, sent, theirs in sorted(answers)]


@given(TRAVELS)
def test_overtaking_alone_never_looks_like_a_restart(travels: list[tuple[int, int, str]]) -> None:
    """Whatever is lost, doubled and overtakes whatever, on either way: the split is what the numbers alone give."""
    arrivals = over_time(travels)
    plain = [Arrival(one.sequence, one.delay_ns, one.reflector_sequence) for one in arrivals]
    numbers = range(1, len(travels) + 1)
    assert split_loss(numbers, arrivals) == split_loss(numbers, plain)


def test_a_reflector_that_begins_anew_gives_no_split() -> None:
    """Eight packets there, five of the answers lost, then a new count: by the numbers alone, seven were lost there."""
    sent = range(1, 16)
    before = [Arrival(number, MS, number - 1, number) for number in (6, 7, 8)]
    after = [Arrival(number, MS, number - 11, number) for number in range(11, 16)]
    assert split_loss(sent, [*before, *after]) is None
    assert split_loss(sent, before) == LossSplit(0, 5, 7)


@given(TRAVELS, st.integers(1, 50))
def test_no_split_over_a_restart_that_can_be_seen(travels: list[tuple[int, int, str]], restarts_at: int) -> None:
    """Once an answer of the new count is below one of the old that had come before its packet left, nothing is said."""
    arrivals = over_time(travels, restarts_at)
    contradict = any(
        late.sequence > early.sent_by_then and late.reflector_sequence < early.reflector_sequence  # type: ignore[operator]
        for early, late in itertools.permutations(arrivals, 2)
    )
    if contradict:
        assert split_loss(range(1, len(travels) + 1), arrivals) is None


@given(
    st.integers(min_value=1, max_value=60),
    st.sets(st.integers(min_value=1, max_value=60)),
    st.sets(st.integers(min_value=1, max_value=60)),
)
def test_the_split_is_exact_up_to_the_last_answer(sent: int, forward: set[int], backward: set[int]) -> None:
    """For every pattern of loss, the split is what really happened before the last answer, and all losses are in it."""
    series = through_network(sent, forward, backward)
    numbers = range(1, sent + 1)
    split = split_loss(numbers, series)
    if not series:
        assert split is None
        return
    last = max(arrival.sequence for arrival in series)
    assert split == LossSplit(
        forward=len({n for n in forward if n < last}),
        backward=len({n for n in backward - forward if n < last}),
        unattributed=sent - last,
    )
    assert split.forward + split.backward + split.unattributed == sent - len(series)


@pytest.mark.parametrize(
    ("lost", "expected"),
    [
        (set(), LossPattern(0, 0, None)),
        ({1}, LossPattern(1, 1, None)),
        ({10}, LossPattern(1, 1, None)),
        ({3, 4, 5}, LossPattern(1, 3, 1.0)),
        ({1, 3, 4, 9}, LossPattern(3, 2, 2.0)),  # distances 2 1 5
        ({2, 6}, LossPattern(2, 1, 4.0)),
        (set(TEN), LossPattern(1, 10, 1.0)),
    ],
)
def test_loss_periods_and_distance_by_hand(lost: set[int], expected: LossPattern) -> None:
    """RFC 3357: a loss period is a run of losses, the loss distance is from one lost packet to the next."""
    assert loss_pattern(TEN, set(TEN) - lost) == expected


def test_a_packet_that_was_never_sent_parts_no_burst() -> None:
    """4 and 7 were lost, 5 and 6 never left: neighbours in the stream, so one burst of two."""
    assert loss_pattern([3, 4, 7, 8], {3, 8}) == LossPattern(1, 2, 1.0)


@given(st.lists(st.booleans(), max_size=80))
def test_bursts_cover_every_loss(is_lost: list[bool]) -> None:
    """For every pattern: bursts are as many as the runs of losses, and none is longer than the longest."""
    runs = [len(run) for run in "".join("x" if lost else "." for lost in is_lost).split(".") if run]
    pattern = loss_pattern(range(len(is_lost)), {place for place, lost in enumerate(is_lost) if not lost})
    assert (pattern.bursts, pattern.burst_max_packets) == (len(runs), max(runs, default=0))
    assert (pattern.distance_median_packets is None) == (sum(runs) < 2)
