from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fleet_controller.receipts import RANGES_MAX, ReceiptBook
from fleet_controller.records import Taken
from probe.messages import Receipt


def receipt(book: ReceiptBook, *sequences: int, floor: int = 1, space: str = "boot-1") -> Receipt:
    """Enter a report with these numbers; what is answered."""
    (one,) = book.take([Taken("hn-01", space, floor, list(sequences))])
    return one


def test_contiguous_numbers_and_what_is_beyond() -> None:
    """A receipt names the highest contiguous number and the ranges after the first gap."""
    book = ReceiptBook()
    assert receipt(book, 1, 2, 3).contiguous == 3
    gap = receipt(book, 5, 6, 9)
    assert (gap.contiguous, gap.beyond) == (3, ((5, 6), (9, 9)))
    closed = receipt(book, 4)
    assert (closed.contiguous, closed.beyond) == (6, ((9, 9),))


def test_after_a_restart_the_floor_says_where_the_agent_stands() -> None:
    """A new book knows nothing and needs nothing: below the floor all is settled, and none of it is lost."""
    book = ReceiptBook()
    one = receipt(book, 1000, 1001, floor=1000)
    assert (one.contiguous, one.beyond, book.lost) == (1001, (), 0)


def test_a_floor_that_passes_a_gap_shows_the_loss() -> None:
    """What the agent dropped before it was taken is counted, and what was taken in between is not."""
    book = ReceiptBook()
    receipt(book, 1, 2, 5)
    one = receipt(book, 9, floor=8)
    assert (one.contiguous, one.beyond, book.lost) == (7, ((9, 9),), 4)  # lost: 3, 4, 6, 7


def test_repeats_are_counted_and_change_nothing() -> None:
    """A result that comes again gives the same receipt and counts as a duplicate."""
    book = ReceiptBook()
    first = receipt(book, 1, 2, 4)
    assert receipt(book, 2, 4) == first
    assert book.duplicates == 2
    receipt(book, 7, 7)
    assert book.duplicates == 3


def test_a_late_report_with_an_old_floor_takes_nothing_back() -> None:
    """Reports may overtake each other: a lower floor is only old news."""
    book = ReceiptBook()
    receipt(book, 10, floor=10)
    assert receipt(book, 3, floor=2).contiguous == 10
    assert book.lost == 0


def test_one_receipt_for_each_space_of_a_batch() -> None:
    """Many reports of one agent and boot in a batch are answered once; another boot has its own answer."""
    book = ReceiptBook()
    taken = [Taken("hn-01", "a", 1, [1]), Taken("hn-01", "a", 1, [2]), Taken("hn-01", "b", 1, [1])]
    assert [(one.sequence_space, one.contiguous) for one in book.take(taken)] == [("a", 2), ("b", 1)]


def test_the_book_is_bounded_in_spaces_and_ranges() -> None:
    """A fleet that boots for ever, or an agent with a thousand gaps, costs a bounded memory and a short receipt."""
    book = ReceiptBook(spaces_max=10)
    for boot in range(25):
        receipt(book, 1, space=f"boot-{boot}")
    assert book.forgotten == 15
    assert len(book._spaces) == 10
    assert len(receipt(book, *range(3, 3000, 2), space="boot-24").beyond) == RANGES_MAX


def test_a_report_without_results_is_answered_too() -> None:
    """An agent that asks with an empty report learns where it stands."""
    assert receipt(ReceiptBook(), floor=5).contiguous == 4


@given(st.lists(st.lists(st.integers(1, 60), max_size=20), max_size=15))
def test_a_receipt_never_promises_what_was_not_taken(batches: list[list[int]]) -> None:
    """For any order and any repeats, the receipt says exactly the set of numbers that were taken."""
    book = ReceiptBook()
    taken: set[int] = set()
    for batch in batches:
        one = receipt(book, *batch)
        taken |= set(batch)
        promised = set(range(1, one.contiguous + 1))
        for low, high in one.beyond:
            promised |= set(range(low, high + 1))
        assert promised == taken
        assert one.contiguous + 1 not in taken


@given(st.data())
def test_taken_and_lost_make_up_everything_below_the_floor(data: st.DataObject) -> None:
    """With a rising floor, every number below it was taken or is counted as lost, once."""
    book = ReceiptBook()
    floor, taken = 1, set[int]()
    receipt(book, floor=1)
    for _ in range(data.draw(st.integers(0, 10))):
        floor = data.draw(st.integers(floor, floor + 10))
        batch = data.draw(st.lists(st.integers(floor, floor + 15), max_size=8))
        receipt(book, *batch, floor=floor)
        taken |= set(batch)
        assert book.lost == (floor - 1) - len({number for number in taken if number < floor})
