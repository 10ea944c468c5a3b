"""What waits for a lost segment, reckoned from the kernel's counters."""

from __future__ import annotations

from msgspec.structs import replace

from probe.flows.bulk.arrivals import WaitingHere, waiting_at_receiver_bytes
from probe.flows.tcp_info import TcpInfo

SEGMENT = 1448
BLANK = TcpInfo()


def received(segments: int, in_order: int, out_of_order: int) -> TcpInfo:
    """A receiver's counters: segments that came, segments in order so far, segments that came out of order."""
    return replace(
        BLANK,
        received_bytes=in_order * SEGMENT,
        received_segments=segments,
        out_of_order_segments=out_of_order,
        receive_segment_bytes=SEGMENT,
    )


def test_nothing_waits_while_all_is_in_order() -> None:
    """What came is what arrived."""
    counter = WaitingHere()
    assert [counter.count(received(n, n, 0)) for n in (10, 20, 30)] == [0, 0, 0]


def test_what_came_after_a_lost_one_counts_at_once() -> None:
    """One of 10 is lost: nine more wait for it; when it comes again, none does, and the sum never jumped."""
    counter = WaitingHere()
    infos = [received(10, 10, 0), received(19, 10, 9), received(30, 10, 20), received(31, 31, 20), received(40, 40, 20)]
    waiting = [counter.count(info) // SEGMENT for info in infos]
    assert waiting == [0, 9, 20, 0, 0]
    arrived = [(info.received_bytes or 0) // SEGMENT + more for info, more in zip(infos, waiting, strict=True)]
    assert arrived == [10, 19, 30, 31, 40]


def test_segments_that_came_twice_are_not_taken_for_waiting() -> None:
    """Five duplicates: an overhead from the next period in order on, also through the next loss."""
    counter = WaitingHere()
    counter.count(received(10, 10, 0))
    counter.count(received(25, 20, 0))
    assert counter.count(received(35, 20, 10)) == 10 * SEGMENT
    assert counter.count(received(36, 31, 10)) == 0


def test_short_segments_are_an_overhead_too() -> None:
    """Half-full segments in order: nothing waits, however many."""
    counter = WaitingHere()
    half = replace(received(100, 0, 0), received_bytes=100 * SEGMENT // 2)
    assert counter.count(half) == 0


def test_a_driver_that_merges_segments_gives_next_to_nothing() -> None:
    """Super-packets of 40 segments that count as one: the plain count stays as it is."""
    counter = WaitingHere()
    assert counter.count(received(10, 400, 0)) == 0
    assert counter.count(received(20, 800, 0)) == 0
    assert counter.count(received(22, 800, 2)) == 2 * SEGMENT
    assert counter.count(received(24, 1000, 2)) == 0


def test_an_old_kernel_tells_nothing() -> None:
    """Without the counters nothing waits."""
    assert WaitingHere().count(replace(BLANK, received_bytes=5)) == 0
    assert waiting_at_receiver_bytes(replace(BLANK, acked_bytes=5)) == 0


def test_a_sender_knows_by_selective_acknowledgements() -> None:
    """Of 10 segments of 1,000 bytes on their way, 4 are there already; retransmissions are no new bytes."""
    info = replace(
        BLANK, acked_bytes=5_000, sent_bytes=17_000, retransmitted_bytes=2_000, unacked_segments=10, sacked_segments=4
    )
    assert waiting_at_receiver_bytes(info) == 4_000


def test_never_more_waits_than_is_on_its_way() -> None:
    """Counters of a moment in which they do not fit together."""
    info = replace(
        BLANK, acked_bytes=5_000, sent_bytes=6_000, retransmitted_bytes=0, unacked_segments=1, sacked_segments=9
    )
    assert waiting_at_receiver_bytes(info) == 1_000
    assert waiting_at_receiver_bytes(replace(info, acked_bytes=9_000)) == 0
