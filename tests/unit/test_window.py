from __future__ import annotations

import random
from dataclasses import dataclass

import msgspec
import pytest
from spool_parts import ManualClock, receipt

from probe.messages import Entry
from probe.publish.window import Guilty, Pace, Window
from probe.spool.spool import Batch

SPACE = "aaaaaaaaaaaa-00000000"
PACE = Pace()
SLOTS = 10
# The patience of a report is at most this share longer than the pause.
LONGEST = 1.5


@dataclass
class Desk:
    """A window with the clock that it looks at."""

    window: Window
    clock: ManualClock
    next_id: int = 1

    def send(self, first: int, count: int = 1) -> int:
        """Hand a report over; returns its id."""
        entries = tuple(Entry(sequence=first + n, result=msgspec.Raw(b"{}")) for n in range(count))
        self.window.handed_over(self.next_id, Batch(SPACE, 1, entries, (first, first + count - 1)))
        self.next_id += 1
        return self.next_id - 1

    def deliver(self, first: int, count: int = 1) -> None:
        """Hand a report over and have it accepted."""
        assert self.window.acknowledged(self.send(first, count), accepted=True)

    def expired_after_s(self) -> float:
        """How long until something goes again."""
        due_s = self.window.next_due_s()
        assert due_s is not None
        passed_s = due_s - self.clock.monotonic_s()
        self.clock.pass_s(passed_s + 0.001)
        self.window.expire()
        return passed_s

    def strike(self, count: int, *, by_word: bool = True) -> Guilty | None:
        """Three connections in a row end on the same report."""
        verdict = None
        for _ in range(3):
            self.send(1, count)
            verdict = self.window.connection_ended(by_word=by_word)
        return verdict


@pytest.fixture
def desk() -> Desk:
    """A window of the real pace."""
    clock = ManualClock()
    return Desk(Window(PACE, clock.monotonic_s, random.Random(7)), clock)  # noqa: S311 - a test repeats itself


def test_at_most_ten_reports_are_in_flight(desk: Desk) -> None:
    """The client holds no more than the broker takes; a PUBACK makes room."""
    ids = [desk.send(n + 1) for n in range(SLOTS)]
    assert desk.window.room(SLOTS) == 0
    desk.window.acknowledged(ids[0], accepted=True)
    assert desk.window.room(SLOTS) == 500
    assert desk.window.room(3) == 0


def test_a_foreign_id_is_nobodys(desk: Desk) -> None:
    """A status and a progress message are acknowledged too."""
    assert not desk.window.acknowledged(99, accepted=True)


def test_a_window_of_results_is_outstanding_at_most(desk: Desk) -> None:
    """Without receipts sending stops at the window; a receipt opens it again."""
    for n in range(8):
        assert desk.window.room(SLOTS) == 500
        desk.deliver(1 + 500 * n, 500)
    assert desk.window.outstanding == PACE.window_results
    assert desk.window.room(SLOTS) == 0
    desk.window.settled(receipt(SPACE, 100, (201, 210)), 110)
    assert desk.window.outstanding == PACE.window_results - 110
    assert desk.window.room(SLOTS) == 110


def test_what_is_on_its_way_is_skipped_until_its_receipt(desk: Desk) -> None:
    """In flight and accepted reports are not read again; receipted ones leave the list."""
    desk.deliver(1, 5)
    desk.send(6, 5)
    assert sorted(desk.window.skip()) == [(1, 5), (6, 10)]
    desk.window.settled(receipt("another", 10), 0)
    assert len(desk.window.skip()) == 2
    desk.window.settled(receipt(SPACE, 10), 10)
    assert desk.window.skip() == [(6, 10)]  # its PUBACK is still to come
    assert desk.window.acknowledged(2, accepted=True)
    assert desk.window.skip() == []


def test_without_receipts_the_pause_doubles_to_its_maximum(desk: Desk) -> None:
    """30 s, 60 s … 15 minutes, each with its own jitter: a day without a database costs little."""
    for expected_s in (30, 60, 120, 240, 480, 900, 900):
        desk.deliver(1)
        assert expected_s <= desk.expired_after_s() <= expected_s * LONGEST
        assert desk.window.outstanding == 0


def test_one_round_doubles_once(desk: Desk) -> None:
    """The many reports of one round do not drive the pause to its maximum together."""
    for n in range(8):
        desk.deliver(1 + n)
    while desk.window.outstanding:
        desk.expired_after_s()
    desk.deliver(1)
    assert desk.expired_after_s() <= 60 * LONGEST


def test_without_receipts_one_report_asks_for_all(desk: Desk) -> None:
    """A day without the controller costs the line a report now and then, not the whole window at every round.

    The first time all of it goes again: one message may simply have been lost.
    """
    for number in range(8):
        desk.deliver(1 + number * 500, 500)
    while desk.window.outstanding:  # the first round lets everything go, report by report
        desk.expired_after_s()
    for number in range(8):
        desk.deliver(1 + number * 500, 500)
    sent = 0
    until_s = desk.clock.monotonic_s() + 86_400
    while desk.clock.monotonic_s() < until_s:
        before = desk.window.outstanding
        desk.expired_after_s()
        gone = before - desk.window.outstanding
        if gone:
            sent += gone
            desk.deliver(1, gone)
    assert sent <= 86_400 / 900 * 500 * 1.5


def test_a_receipt_resets_the_pause(desk: Desk) -> None:
    """When the controller is back, what is still out goes again after the first pause, not after 15 minutes."""
    for _ in range(5):
        desk.deliver(1)
        desk.expired_after_s()
    desk.deliver(1)
    desk.deliver(2)
    desk.window.settled(receipt(SPACE, 1), 1)
    assert desk.expired_after_s() <= 30 * LONGEST


def test_a_hole_goes_again_while_others_are_receipted(desk: Desk) -> None:
    """A report that the broker lost is offered again though receipts for others keep coming."""
    desk.deliver(1)
    for n in range(2, 50):
        desk.deliver(n)
        desk.clock.pass_s(1)
        desk.window.settled(receipt(SPACE, 0, (2, n)), 1)
        desk.window.expire()
    assert desk.window.skip() == []


def test_a_forgotten_session_sends_all_again(desk: Desk) -> None:
    """A broker that lost its disk lost what it had queued."""
    desk.deliver(1, 5)
    desk.window.session_forgotten()
    assert desk.window.skip() == []


def test_a_refusal_keeps_and_pauses(desk: Desk) -> None:
    """Nobody subscribed, or no right: it is offered again, alone, ever more seldom; accepted once, all flows."""
    pauses = []
    for _ in range(9):
        message_id = desk.send(1, 5)
        desk.window.acknowledged(message_id, accepted=False)
        assert desk.window.skip() == []
        assert desk.window.room(SLOTS) == 0
        pauses.append(desk.expired_after_s())
        assert desk.window.room(SLOTS) == 500
    assert 2.5 <= pauses[0] <= 5
    assert 150 <= pauses[-1] <= 300
    message_id = desk.send(1, 5)
    assert desk.window.room(SLOTS) == 0  # one at a time
    desk.window.acknowledged(message_id, accepted=True)
    desk.send(6, 5)
    assert desk.window.room(SLOTS) == 500


def test_a_report_that_ends_connections_is_halved(desk: Desk) -> None:
    """Three ends in a row on one report halve it; it grows again only after a while."""
    assert desk.strike(500) is None
    assert desk.window.room(SLOTS) == 250
    desk.deliver(1, 250)
    assert desk.window.room(SLOTS) == 250
    desk.clock.pass_s(PACE.regrow_s)
    assert desk.window.room(SLOTS) == 500


def test_a_single_result_that_ends_connections_is_set_aside(desk: Desk) -> None:
    """By the broker's word three times is enough."""
    guilty = desk.strike(1)
    assert guilty is not None
    assert (guilty.space, guilty.sequence) == (SPACE, 1)
    assert desk.strike(1) is not None  # the count starts anew


def test_a_bad_line_costs_no_result(desk: Desk) -> None:
    """Connections that end without a word are mostly the line's; only the ninth in a row blames the result."""
    assert desk.strike(1, by_word=False) is None
    assert desk.strike(1, by_word=False) is None
    assert desk.strike(1, by_word=False) is not None
    desk.strike(1, by_word=False)
    desk.strike(1, by_word=False)
    desk.deliver(2)
    assert desk.strike(1, by_word=False) is None


def test_a_quiet_connection_may_end(desk: Desk) -> None:
    """Nothing in flight, nobody to blame."""
    for _ in range(20):
        assert desk.window.connection_ended(by_word=True) is None
    assert desk.window.room(SLOTS) == 500
