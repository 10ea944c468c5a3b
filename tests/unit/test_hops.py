from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.flows.path.hops import Hop, Reply, Unreachable, hash_of, meaning, path_of, paths_agree

MS = 1_000_000
WORDS = st.sampled_from(["*", "10.0.0.1", "10.0.0.2", "10.0.0.1|10.0.0.2", "2001:db8::1"])
PATHS = st.lists(WORDS, max_size=6).map(" ".join)


def hop(ttl: int, *addresses: str, unreachable: Unreachable | None = None, delay_ns: int | None = MS) -> Hop:
    """A hop that these answered."""
    return Hop(ttl, ttl, len(addresses), [Reply(address, delay_ns, unreachable) for address in addresses])


def test_a_path_names_every_hop_and_ends_at_the_last_answer() -> None:
    """Silence in the middle is a star, silence at the end is nothing, two routers at one TTL are both there."""
    assert path_of([hop(1, "a"), hop(2), hop(3, "c", "b", "c"), hop(4), hop(5)]) == "a * b|c"
    assert path_of([hop(1), hop(2)]) == ""
    assert path_of([]) == ""


def test_a_hash_is_for_ever() -> None:
    """It is stored for years: another program version must give the same."""
    assert hash_of("10.77.1.2 10.77.2.2 10.77.3.2 10.77.4.2") == "b058595b42bf0f5a"
    assert hash_of("a *") != hash_of("a b")


@pytest.mark.parametrize(
    ("first", "second", "agree"),
    [
        ("a b c", "a b c", True),
        ("a b c", "a * c", True),
        ("a * c", "* b c", True),
        ("a b c", "a d c", False),
        ("a b", "a b c", False),
        ("a b|d c", "a d c", True),
        ("a b|d c", "a e c", False),
        ("", "a b c", True),
    ],
)
def test_when_two_paths_can_be_one(first: str, second: str, agree: bool) -> None:
    """A silent hop is no change; another router, or another length, is."""
    assert paths_agree(first, second) is agree
    assert paths_agree(second, first) is agree


@given(PATHS, st.lists(st.booleans(), min_size=6, max_size=6))
def test_silence_alone_never_makes_a_change(path: str, silent: list[bool]) -> None:
    """Whichever hops but the last say nothing this time, the path agrees with itself."""
    words = path.split()
    heard = ["*" if quiet and word is not words[-1] else word for word, quiet in zip(words, silent, strict=False)]
    assert paths_agree(path, " ".join(heard))


@pytest.mark.parametrize(
    ("version", "icmp_type", "icmp_code", "expected"),
    [
        (4, 11, 0, "time_exceeded"),
        (4, 11, 1, None),  # reassembly took too long: not about a hop
        (4, 3, 0, "network"),
        (4, 3, 1, "host"),
        (4, 3, 3, "port"),
        (4, 3, 4, "too_big"),
        (4, 3, 13, "prohibited"),
        (4, 3, 99, "other"),
        (4, 12, 0, None),
        (6, 3, 0, "time_exceeded"),
        (6, 1, 0, "network"),
        (6, 1, 1, "prohibited"),
        (6, 1, 3, "host"),
        (6, 1, 4, "port"),
        (6, 2, 0, "too_big"),
        (6, 4, 0, None),
    ],
)
def test_what_icmp_says(version: int, icmp_type: int, icmp_code: int, expected: str | None) -> None:
    """RFC 792, RFC 1812 and RFC 4443, in the words of the values."""
    assert meaning(version, icmp_type, icmp_code) == expected


def test_a_hop_knows_its_shortest_delay() -> None:
    """Absent when no clock vouches for any."""
    one = Hop(1, 0, 3, [Reply("a", 3 * MS), Reply("a", None), Reply("a", 2 * MS)])
    assert one.delay_min_ns() == 2 * MS
    assert hop(1, "a", delay_ns=None).delay_min_ns() is None


def test_what_ends_a_path() -> None:
    """The destination, and a router that refuses; the destination's own refusal is none."""
    assert not hop(1, "a").ends_the_path()
    assert hop(1, "a", unreachable="host").unreachable() == "host"
    assert hop(1, "a", unreachable="host").ends_the_path()
    reached = Hop(1, 0, 1, [Reply("a", MS, from_destination=True)])
    assert (reached.ends_the_path(), reached.unreachable()) == (True, None)
