from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spool_parts import (
    BOOT_B,
    SYNCHRONISED,
    UNSYNCHRONISED,
    WALL_NS,
    ManualClock,
    add,
    batch_of,
    draft,
    open_spool,
    result,
    results_of,
)

from probe import config
from probe.clock import NS_PER_S, Instant
from probe.messages import ClockReading, ClockState

LAST_WEEK_NS = WALL_NS - 7 * 86400 * NS_PER_S


@pytest.fixture
def woken() -> ManualClock:
    """A probe that woke up with last week's time."""
    return ManualClock(wall=LAST_WEEK_NS, state=UNSYNCHRONISED)


def set_right(clock: ManualClock) -> None:
    """The time daemon sets the clock to what it really is."""
    clock.wall = WALL_NS
    clock.state = SYNCHRONISED


def test_a_result_is_stamped_when_the_clock_is_right(tmp_path: Path, woken: ManualClock) -> None:
    """Its start is the verified time minus what has passed since on the boot-time clock; the result says so."""
    spool = open_spool(tmp_path / "spool.db", woken)
    row = spool.begin(draft(woken), Instant.now(woken))
    finished = result(woken)
    woken.pass_s(90)
    spool.finish(row, finished)
    set_right(woken)
    woken.pass_s(10)
    (sent,) = results_of(batch_of(spool))
    assert sent.start_unix_ns == WALL_NS + 10 * NS_PER_S - 100 * NS_PER_S
    assert sent.clock == ClockReading(state=ClockState.CORRECTED, max_error_s=0.01)
    spool.close()


def test_a_stamp_is_final(tmp_path: Path, woken: ManualClock) -> None:
    """The same bytes go at each repetition, after a restart too: a point's identity must not change."""
    path = tmp_path / "spool.db"
    spool = open_spool(path, woken)
    add(spool, woken)
    set_right(woken)
    first = bytes(batch_of(spool).entries[0].result)
    woken.pass_s(3600)
    woken.wall += 5 * NS_PER_S
    assert bytes(batch_of(spool).entries[0].result) == first
    spool.close()
    spool = open_spool(path, woken)
    assert bytes(batch_of(spool).entries[0].result) == first
    spool.close()


def test_a_probe_without_time_sends_all_the_same(tmp_path: Path, woken: ManualClock) -> None:
    """Nobody vouches for the clock: the wall's best word goes, marked, and stays what it was once sent."""
    spool = open_spool(tmp_path / "spool.db", woken)
    add(spool, woken)
    woken.wall += 3 * NS_PER_S  # somebody set it, nobody vouches for it
    woken.pass_s(1)
    first = batch_of(spool)
    (sent,) = results_of(first)
    assert (sent.start_unix_ns, sent.clock) == (LAST_WEEK_NS + 3 * NS_PER_S, UNSYNCHRONISED)
    set_right(woken)
    assert bytes(batch_of(spool).entries[0].result) == bytes(first.entries[0].result)
    spool.close()


def test_a_verified_result_is_left_alone(tmp_path: Path) -> None:
    """What was measured on a good clock keeps its time, whatever the clock does later."""
    clock = ManualClock()
    spool = open_spool(tmp_path / "spool.db", clock)
    add(spool, clock)
    clock.wall = LAST_WEEK_NS
    clock.state = UNSYNCHRONISED
    (sent,) = results_of(batch_of(spool))
    assert (sent.start_unix_ns, sent.clock) == (WALL_NS, SYNCHRONISED)
    spool.close()


def test_an_earlier_boot_that_never_knew_the_time(tmp_path: Path, woken: ManualClock) -> None:
    """Its results go as they are, marked: the new boot's clock says nothing of the old one's."""
    path = tmp_path / "spool.db"
    spool = open_spool(path, woken)
    add(spool, woken)
    spool.close()
    clock = ManualClock(boottime=5 * NS_PER_S)
    spool = open_spool(path, clock, boot=BOOT_B)
    (sent,) = results_of(batch_of(spool))
    assert (sent.start_unix_ns, sent.clock.state) == (LAST_WEEK_NS, ClockState.UNSYNCHRONISED)
    spool.close()


def test_an_earlier_boot_that_learnt_the_time(tmp_path: Path, woken: ManualClock) -> None:
    """The offset found before the power failed corrects what that boot measured before it knew the time."""
    path = tmp_path / "spool.db"
    spool = open_spool(path, woken)
    add(spool, woken)
    woken.pass_s(60)
    set_right(woken)
    spool.enforce()
    spool.close()
    clock = ManualClock(wall=LAST_WEEK_NS, boottime=5 * NS_PER_S, state=UNSYNCHRONISED)
    spool = open_spool(path, clock, boot=BOOT_B)
    (sent,) = results_of(batch_of(spool))
    assert (sent.start_unix_ns, sent.clock.state) == (WALL_NS - 60 * NS_PER_S, ClockState.CORRECTED)
    spool.close()


def test_age_of_an_unverified_boot_counts_from_the_first_good_time(tmp_path: Path, woken: ManualClock) -> None:
    """A row that says 1970 is not 57 years old; it is as old as the first verified time at which it was seen."""
    path = tmp_path / "spool.db"
    woken.wall = 0
    spool = open_spool(path, woken)
    add(spool, woken)
    spool.close()
    clock = ManualClock(boottime=5 * NS_PER_S)
    spool = open_spool(path, clock, boot=BOOT_B, limits=config.Spool(max_age_s=3600.0))
    spool.enforce()
    assert spool.status().results == 1
    clock.pass_s(3601)
    spool.enforce()
    assert (spool.status().results, spool.status().dropped_age) == (0, 1)
    spool.close()


def test_a_wrong_clock_makes_nothing_old(tmp_path: Path) -> None:
    """With nobody to vouch for the time, rows of an earlier boot are not judged by it."""
    path = tmp_path / "spool.db"
    clock = ManualClock()
    spool = open_spool(path, clock)
    add(spool, clock)
    spool.close()
    clock = ManualClock(wall=WALL_NS * 2, boottime=5 * NS_PER_S, state=UNSYNCHRONISED)
    spool = open_spool(path, clock, boot=BOOT_B, limits=config.Spool(max_age_s=3600.0))
    spool.enforce()
    assert spool.status().results == 1
    spool.close()


@settings(deadline=None)  # a disk's fsync takes what it takes
@given(steps=st.lists(st.tuples(st.sampled_from(["add", "step", "pass", "send", "right"]), st.integers(0, 5))))
def test_starts_never_collide(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]) -> None:
    """Whatever the clock does, the results that wait have starts of their own, also once they are stamped."""
    clock = ManualClock(state=UNSYNCHRONISED)
    spool = open_spool(tmp_path_factory.mktemp("spool") / "spool.db", clock)
    for what, amount in steps:
        if what == "add":
            add(spool, clock, amount)
        elif what == "step":
            clock.wall -= amount
        elif what == "pass":
            clock.wall, clock.boottime = clock.wall + amount, clock.boottime + amount
        elif what == "right":
            clock.state = SYNCHRONISED
        else:
            spool.batch((), amount + 1, 200_000)
    add(spool, clock)
    starts = [sent.start_unix_ns for sent in results_of(batch_of(spool))]
    spool.close()
    assert len(set(starts)) == len(starts)
