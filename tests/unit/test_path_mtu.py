from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.flows.ipv6.path_mtu import Answer, PathMtu, find

FULL = 1500


class Path:
    """A path that carries `mtu_bytes`, whose router says so as often as its limit allows, or says something else."""

    def __init__(self, mtu_bytes: int, *, says_bytes: int | None = None, reports: int = 1000) -> None:
        self.mtu_bytes = mtu_bytes
        self.says_bytes = says_bytes
        self.reports = reports
        self.asked: list[int] = []

    async def ask(self, size_bytes: int) -> Answer:
        """What becomes of a packet."""
        self.asked.append(size_bytes)
        if size_bytes <= self.mtu_bytes:
            return Answer(echoed=True)
        if self.says_bytes is None or self.reports == 0 or self.says_bytes >= size_bytes:
            return Answer(echoed=False)
        self.reports -= 1
        return Answer(echoed=False, mtu_bytes=self.says_bytes)


async def test_a_full_path_takes_one_question() -> None:
    """Nearly every line, nearly every time."""
    path = Path(FULL)
    assert await find(path.ask, FULL) == PathMtu(FULL, is_black_hole=False, reported_bytes=None, sizes_asked=1)


async def test_what_a_router_says_is_believed_once_it_is_seen_to_work() -> None:
    """One report, one try below: three questions."""
    path = Path(1400, says_bytes=1400)
    assert await find(path.ask, FULL) == PathMtu(1400, is_black_hole=False, reported_bytes=1400, sizes_asked=3)


@given(st.integers(min_value=128, max_value=FULL - 1))
async def test_silence_is_a_black_hole_found_to_the_byte(mtu_bytes: int) -> None:
    """Whatever the size, in a bounded number of questions."""
    path = Path(mtu_bytes)
    found = await find(path.ask, FULL)
    assert (found.path_mtu_bytes, found.is_black_hole) == (mtu_bytes, True)
    assert len(path.asked) <= 16


@given(st.integers(min_value=128, max_value=FULL - 1), st.integers(min_value=1, max_value=3))
async def test_a_router_that_tells_is_no_black_hole(mtu_bytes: int, reports: int) -> None:
    """However seldom it may speak (RFC 4443 section 2.4 wants a limit)."""
    found = await find(Path(mtu_bytes, says_bytes=mtu_bytes, reports=reports).ask, FULL)
    assert (found.path_mtu_bytes, found.is_black_hole) == (mtu_bytes, False)


@given(st.integers(min_value=128, max_value=FULL - 1))
async def test_routers_that_give_no_size(mtu_bytes: int) -> None:
    """Those of before RFC 1191 say 0: no black hole, found by halving."""
    found = await find(Path(mtu_bytes, says_bytes=0).ask, FULL)
    assert (found.path_mtu_bytes, found.is_black_hole, found.reported_bytes) == (mtu_bytes, False, 0)


@given(st.integers(min_value=128, max_value=1399))
async def test_a_second_constriction_that_is_silent(mtu_bytes: int) -> None:
    """The first router says 1400, a later one swallows what is over its own: a black hole behind an honest router."""
    found = await find(Path(mtu_bytes, says_bytes=1400).ask, FULL)
    assert (found.path_mtu_bytes, found.is_black_hole) == (mtu_bytes, True)


@given(st.integers(min_value=128, max_value=FULL - 1), st.integers(min_value=0, max_value=2000))
async def test_a_router_that_lies_does_not_mislead(mtu_bytes: int, says_bytes: int) -> None:
    """The size is what was seen to pass, within what was said."""
    found = await find(Path(mtu_bytes, says_bytes=says_bytes).ask, FULL)
    assert found.path_mtu_bytes is not None
    assert found.path_mtu_bytes <= mtu_bytes
    assert found.sizes_asked <= 16


async def test_a_dead_path_tells_nothing() -> None:
    """No size passes: absent, not a black hole."""
    assert await find(Path(0).ask, FULL) == PathMtu(None, is_black_hole=None, reported_bytes=None, sizes_asked=4)


@pytest.mark.parametrize("outage", range(1, 9))
async def test_an_outage_in_the_middle_is_no_black_hole(outage: int) -> None:
    """The first questions are lost with everything else; the line comes back before the verdict, or dies for good."""
    count = itertools.count()

    async def comes_back(size_bytes: int) -> Answer:
        del size_bytes
        return Answer(echoed=not 0 <= next(count) < 1)

    assert (await find(comes_back, FULL)).is_black_hole is False
    path, count = Path(1400), itertools.count()

    async def dies(size_bytes: int) -> Answer:
        return Answer(echoed=next(count) < outage and (await path.ask(size_bytes)).echoed)

    assert (await find(dies, FULL)).is_black_hole is None


async def test_an_interface_of_its_own_size() -> None:
    """PPPoE's 1492 is full there, and nothing larger is asked."""
    path = Path(FULL)
    assert (await find(path.ask, 1492)).path_mtu_bytes == 1492
    assert path.asked == [1492]
