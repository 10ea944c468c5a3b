"""A limit that several streams share: never more is taken than there is, and nothing is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.flows.bulk.allowance import PART_BYTES_MIN, Allowance

MB = 1_000_000


def test_without_a_limit_there_is_always_more() -> None:
    """Whatever is wanted is given, and it is never empty."""
    allowance = Allowance(None)
    assert allowance.take(1 << 50) == 1 << 50
    allowance.give_back(1)
    assert not allowance.is_limited
    assert not allowance.is_empty


def test_what_is_given_back_can_be_taken_again() -> None:
    """A part that will not come is somebody else's."""
    allowance = Allowance(100)
    assert allowance.take(80) == 80
    assert allowance.take(80) == 20
    assert allowance.is_empty
    allowance.give_back(30)
    assert not allowance.is_empty
    assert allowance.take(80) == 30


@given(
    limit_bytes=st.integers(100_000, 10**10),
    streams=st.integers(1, 16),
    turns=st.lists(st.sampled_from(["part", "take", "give_back"]), max_size=300),
)
def test_the_sum_never_exceeds_the_limit(limit_bytes: int, streams: int, turns: list[str]) -> None:
    """Whoever takes and gives back in whatever order; and no part is too short to be asked for, but all are given."""
    allowance = Allowance(limit_bytes)
    allowance.share_among(streams)
    held: list[int] = []
    for turn in turns:
        if turn == "give_back" and held:
            allowance.give_back(held.pop())
        elif turn == "take":
            held.append(allowance.take(allowance.part_bytes))
        else:
            held.append(allowance.take_part())
        assert sum(held) <= limit_bytes
    while part_bytes := allowance.take_part():
        held.append(part_bytes)
    assert sum(held) == limit_bytes


def test_parts_are_never_shorter_than_a_head_may_be() -> None:
    """The last part takes the odd rest with it."""
    allowance = Allowance(100_000)
    allowance.share_among(16)
    parts = []
    while part_bytes := allowance.take_part():
        parts.append(part_bytes)
    assert min(parts) >= PART_BYTES_MIN
    assert sum(parts) == 100_000


@pytest.mark.parametrize(("limit_bytes", "streams"), [(100_000, 1), (10 * MB, 8), (300 * MB, 16)])
def test_windows_take_a_quarter_at_most(limit_bytes: int, streams: int) -> None:
    """Where open windows count, most of the limit is left to be read."""
    allowance = Allowance(limit_bytes)
    allowance.share_among(streams)
    assert allowance.window_bytes * streams <= limit_bytes / 4


def test_a_long_path_is_asked_further_ahead() -> None:
    """Three parts at least; with 2 MB under way in parts of 52 kB on 16 streams, two more for each."""
    allowance = Allowance(10 * MB)
    allowance.share_among(16)
    assert allowance.parts_ahead == 3
    allowance.ask_ahead(2 * MB)
    assert allowance.parts_ahead == 5


def test_a_count_is_no_more_than_the_limit() -> None:
    """Heads that wait to be read look like payload until then."""
    assert Allowance(100).at_most(140) == 100
    assert Allowance(100).at_most(60) == 60
    assert Allowance(None).at_most(140) == 140
