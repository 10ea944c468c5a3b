"""The arithmetic of the emulated line, with time passed in."""

from __future__ import annotations

import itertools
import random
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_controller.lab.line import Line, line_pair
from fleet_controller.lab.packets import VNET_HEADER_BYTES, packets_of, wire_bytes
from fleet_controller.lab.profile import LinkProfile, RateStep, tcp_payload_bps

MS = 1_000_000
S = 1_000_000_000
PACKET_BYTES = 1500
TCP_V4_BYTES = 52  # 20 of IPv4, 20 of TCP, 12 of the timestamp option


def frame(size_bytes: int = PACKET_BYTES, mark: int = 0) -> bytes:
    """A packet of this IP length, with a number in its last bytes to know it by."""
    return bytes(VNET_HEADER_BYTES) + bytes(size_bytes - 4) + mark.to_bytes(4, "big")


def super_packet(payload_bytes: int, segment_bytes: int = 1448) -> bytes:
    """A TCP super-packet over IPv4, with a `hdr_len` hint that is wrong, as the kernel's may be."""
    header = struct.pack("<BBHHHH", 1, 1, 999, segment_bytes, 20, 16)
    ip = bytes([0x45]) + bytes(19)
    tcp = bytes(12) + bytes([8 << 4]) + bytes(19)
    return header + ip + tcp + bytes(payload_bytes)


def line(rate_bps: int = 12_000_000, **changes: Any) -> Line:
    """The download of a line on which a packet of 1500 bytes takes 1 ms."""
    profile: dict[str, Any] = {"delay_s": 0.0, "buffer_s": 1.0} | changes
    return line_pair(LinkProfile(rate_bps, rate_bps, **profile), 1)[1]


def mark_of(got: bytes) -> int:
    """The number of a packet made by `frame`."""
    return int.from_bytes(got[-4:], "big")


def arrivals(emulated: Line, until_ns: int) -> list[tuple[int, bytes]]:
    """Everything that arrives until then, each with its moment."""
    seen = []
    while (due_ns := emulated.next_due_ns()) is not None and due_ns <= until_ns:
        seen += [(due_ns, got) for got in emulated.due(due_ns)]
    return seen


def test_a_packet_takes_its_own_length_and_the_delay() -> None:
    """One packet on an idle line arrives after its serialisation time and half of the round trip."""
    emulated = line(delay_s=0.020)
    emulated.offer(frame(), 5 * MS)
    assert [moment for moment, _ in arrivals(emulated, S)] == [5 * MS + 1 * MS + 10 * MS]


def test_packets_offered_together_leave_one_after_another_in_order() -> None:
    """A burst is stretched to the line's rate."""
    emulated = line()
    for mark in range(5):
        emulated.offer(frame(mark=mark), 0)
    seen = arrivals(emulated, S)
    assert [moment for moment, _ in seen] == [MS, 2 * MS, 3 * MS, 4 * MS, 5 * MS]
    assert [got[-1] for _, got in seen] == [0, 1, 2, 3, 4]


def test_what_came_before_the_last_one_came_with_it() -> None:
    """Stamps tell of an earlier moment than that of a packet which has none: order and tokens stay as they are."""
    emulated = line()
    emulated.offer(frame(mark=1), 10 * MS)
    emulated.offer(frame(mark=2), 4 * MS)
    assert [(moment, mark_of(got)) for moment, got in arrivals(emulated, S)] == [(11 * MS, 1), (12 * MS, 2)]
    policed = line(policer_burst_bytes=2 * PACKET_BYTES)
    policed.offer(frame(mark=1), 10 * MS)
    policed.offer(frame(mark=2), 4 * MS)
    assert [(moment, mark_of(got)) for moment, got in arrivals(policed, S)] == [(10 * MS, 1), (10 * MS, 2)]


def test_the_rate_is_exact_where_a_packet_takes_a_fraction_of_a_nanosecond() -> None:
    """Over 30,000 packets the rate is right to the nanosecond: remainders are carried on."""
    emulated = line(rate_bps=7_000_000_001, buffer_s=10.0)
    for _ in range(30_000):
        emulated.offer(frame(), 0)
    last_ns = arrivals(emulated, S)[-1][0]
    assert last_ns == 30_000 * PACKET_BYTES * 8 * S // 7_000_000_001


def test_a_change_of_rate_counts_for_what_already_waits() -> None:
    """Packets deep in the buffer leave at the rate of their departure, not of their arrival."""
    emulated = line()
    for _ in range(4):
        emulated.offer(frame(), 0)
    first = arrivals(emulated, 2 * MS)
    emulated.rate_bps = 6_000_000
    rest = arrivals(emulated, S)
    moments = [moment for moment, _ in first + rest]
    # The third had begun, at the old rate, at the very moment of the change.
    assert moments == [MS, 2 * MS, 3 * MS, 5 * MS]


def test_what_does_not_fit_into_the_buffer_is_dropped_at_its_tail() -> None:
    """The buffer holds `buffer_s` of the line's rate beside the packet on the wire; later packets are dropped."""
    emulated = line(buffer_s=0.010)
    taken = [emulated.offer(frame(), 0) for _ in range(15)]
    assert taken == [True] * 11 + [False] * 4
    assert emulated.counters.dropped == 4
    assert len(arrivals(emulated, S)) == 11


def test_the_buffer_has_room_again_when_the_line_has_sent() -> None:
    """A full buffer takes one packet more for each that leaves it."""
    emulated = line(buffer_s=0.010)
    for _ in range(15):
        emulated.offer(frame(), 0)
    assert [emulated.offer(frame(), 2 * MS) for _ in range(3)] == [True, True, False]


def test_a_frame_larger_than_the_buffer_passes_an_idle_line() -> None:
    """A super-packet is never refused for its size alone: that would stop TCP for ever."""
    emulated = line(buffer_s=0.0)
    emulated.offer(frame(), 0)
    assert emulated.offer(super_packet(60_000), 5 * MS)


def test_a_super_packet_counts_the_headers_of_its_segments() -> None:
    """Ten segments take as long as ten packets of 1500 bytes."""
    assert wire_bytes(super_packet(10 * 1448)) == 10 * PACKET_BYTES
    assert wire_bytes(super_packet(10 * 1448 + 1)) == 10 * PACKET_BYTES + TCP_V4_BYTES + 1
    assert wire_bytes(frame(84)) == 84


def test_an_ipv6_super_packet_counts_its_longer_headers() -> None:
    """40 bytes of IPv6 instead of 20 of IPv4."""
    header = struct.pack("<BBHHHH", 1, 4, 0, 1428, 40, 16)
    packet = header + bytes([0x60]) + bytes(39) + bytes(12) + bytes([8 << 4]) + bytes(19) + bytes(2 * 1428)
    assert wire_bytes(packet) == 2 * PACKET_BYTES


def test_loss_is_random_reproducible_and_of_the_configured_share() -> None:
    """2 % of 20,000 packets, the same ones each time, and they use the line's time like the others."""

    def survivors(seed: int) -> list[bytes]:
        emulated = line_pair(LinkProfile(12_000_000, 12_000_000, 0.0, loss_ratio=0.02, buffer_s=100.0), seed)[1]
        for mark in range(20_000):
            emulated.offer(frame(100, mark), 0)
        seen = arrivals(emulated, 100 * S)
        assert seen[-1][0] == pytest.approx(20_000 * 100 * 8 / 12e6 * S, rel=1e-3)
        return [got for _, got in seen]

    assert len(survivors(1)) == pytest.approx(19_600, abs=80)
    assert survivors(1) == survivors(1)
    assert survivors(1) != survivors(2)


def test_the_two_directions_differ() -> None:
    """Upload and download have their own rate, losses and jitter."""
    profile = LinkProfile(40_000_000, 15_000_000, 0.045, 0.004, upload_buffer_s=0.5)
    upload, download = line_pair(profile, 1)
    assert (upload.rate_bps, download.rate_bps) == (15_000_000, 40_000_000)
    assert (upload.buffer_bytes, download.buffer_bytes) == (0.5 * 15e6 / 8, 0.1 * 40e6 / 8)
    moments = [number * 7 * MS for number in range(100)]
    assert {upload.jitter.at(moment) for moment in moments} == {0}
    assert max(download.jitter.at(moment) for moment in moments) == 2 * MS


def test_a_jitter_larger_than_the_delay_is_refused() -> None:
    """A packet cannot arrive before it left."""
    with pytest.raises(ValueError, match="does not fit"):
        line_pair(LinkProfile(1_000_000, 1_000_000, 0.001, 0.002), 1)


def test_an_empty_line_has_nothing_to_do() -> None:
    """No packet, no next moment: the process may sleep for ever."""
    emulated = line()
    assert emulated.next_due_ns() is None
    emulated.offer(frame(), 0)
    assert list(emulated.due(10 * MS)) == [frame()]
    assert emulated.next_due_ns() is None


@given(
    st.lists(st.tuples(st.integers(0, 5 * MS), st.integers(40, 1500)), min_size=1, max_size=80),
    st.integers(0, 2**16),
)
def test_every_packet_is_delivered_lost_or_dropped_and_none_before_its_time(
    offers: list[tuple[int, int]], seed: int
) -> None:
    """Whatever comes: the books balance, order holds, and the line never carries more than its rate."""
    emulated = line_pair(LinkProfile(8_000_000, 8_000_000, 0.010, 0.004, 0.1, 0.02), seed)[1]
    now_ns = 0
    seen: list[tuple[int, bytes]] = []
    for mark, (gap_ns, size_bytes) in enumerate(offers):
        now_ns += gap_ns
        seen += arrivals(emulated, now_ns)
        emulated.offer(frame(size_bytes, mark), now_ns)
    seen += arrivals(emulated, now_ns + S)
    counters = emulated.counters
    assert counters.offered == len(offers) == counters.dropped + counters.lost + counters.delivered
    assert counters.delivered == len(seen)
    marks = [int.from_bytes(got[-4:], "big") for _, got in seen]
    assert marks == sorted(marks)
    assert all(moment >= 3 * MS for moment, _ in seen)  # half of 10 ms of delay less half of 4 ms of jitter


def test_tcp_payload_is_what_is_left_of_a_full_packet() -> None:
    """1448 of 1500 bytes."""
    assert tcp_payload_bps(150e6) == pytest.approx(144.8e6)


def test_a_line_can_be_driven_at_random_moments_without_losing_its_rate() -> None:
    """Looking in late, as a busy host does, delays deliveries but not departures: the rate stays."""
    emulated = line(buffer_s=10.0)
    for _ in range(1000):
        emulated.offer(frame(), 0)
    chance = random.Random(3)  # noqa: S311 - a reproducible test
    now_ns, got = 0, 0
    while emulated.next_due_ns() is not None:
        now_ns += chance.randrange(20 * MS)
        got += len(list(emulated.due(now_ns)))
        assert got == min(1000, now_ns // MS)


def sizes(emulated: Line) -> list[int]:
    """How many packets each arriving frame is, with all that is on the line."""
    return [packets_of(got) for _, got in arrivals(emulated, 100 * S)]


def test_the_packets_of_a_super_packet_that_find_room_are_taken() -> None:
    """The buffer's tail drops packets, not super-packets: of ten, those that fit go on, as one frame."""
    emulated = line(buffer_s=0.005)
    emulated.offer(frame(), 0)
    emulated.offer(frame(), 0)
    assert not emulated.offer(super_packet(10 * 1448), 0)
    assert emulated.counters.dropped == 6
    assert sizes(emulated) == [1, 1, 4]


@pytest.mark.parametrize("burst", [1, 4])
@pytest.mark.parametrize("packets", [1, 40])
def test_loss_is_of_packets_whether_they_travel_alone_or_together(packets: int, burst: float) -> None:
    """2 % of 40,000 packets are lost, in super-packets of 40 as in single ones; the others all arrive."""
    emulated = line(10_000_000_000, loss_ratio=0.02, loss_burst_packets=burst)
    for number in range(40_000 // packets):
        emulated.offer(super_packet(packets * 1448), number * MS)
    delivered = sum(sizes(emulated))
    assert emulated.counters.lost == 40_000 - delivered == 40_000 - emulated.counters.delivered
    # 5 standard deviations; runs of b losses are b times as variable.
    assert emulated.counters.lost == pytest.approx(800, abs=5 * (800 * 2 * burst) ** 0.5)


@pytest.mark.parametrize(("gap_ms", "expected"), [(100, 0.75), (600, 0.2)])
def test_a_run_of_losses_is_over_after_a_pause(gap_ms: int, expected: float) -> None:
    """A tenth of a second after a lost packet the next is probably lost too; after half of one it is like any other."""
    emulated = line(10_000_000_000, loss_ratio=0.2, loss_burst_packets=4)
    is_lost = []
    for number in range(1, 8_001):
        before = emulated.counters.lost
        emulated.offer(frame(), number * gap_ms * MS)
        list(emulated.due(number * gap_ms * MS + MS))
        is_lost.append(emulated.counters.lost > before)
    after_a_loss = [second for first, second in itertools.pairwise(is_lost) if first]
    assert sum(after_a_loss) / len(after_a_loss) == pytest.approx(expected, abs=0.06)
    assert sum(is_lost) / len(is_lost) == pytest.approx(0.2, abs=0.06)


def test_late_packets_are_overtaken_by_those_of_the_gap() -> None:
    """One in ten is held back by 5 ms, so that packets a millisecond apart come before it; none is lost."""
    emulated = line(reorder_ratio=0.1, reorder_gap_s=0.005)
    for mark in range(500):
        emulated.offer(frame(mark=mark), 0)
    seen = arrivals(emulated, S)
    late_ns = {mark_of(got): moment - (mark_of(got) + 1) * MS for moment, got in seen}
    assert sorted(late_ns) == list(range(500))
    assert set(late_ns.values()) == {0, 5 * MS}
    assert emulated.counters.delayed == sum(late > 0 for late in late_ns.values()) > 30
    assert [moment for moment, _ in seen] == sorted(moment for moment, _ in seen)


def test_copies_arrive_with_their_packet_and_take_no_time_of_the_line() -> None:
    """One in ten arrives twice; the last packet arrives when it would have without."""
    emulated = line(duplicate_ratio=0.1)
    for mark in range(500):
        emulated.offer(frame(mark=mark), 0)
    seen = arrivals(emulated, S)
    copies = [mark_of(one[1]) for one, other in itertools.pairwise(seen) if one[1] == other[1]]
    assert len(seen) - 500 == len(copies) == emulated.counters.duplicated > 30
    assert seen[-1][0] == 500 * MS


def test_a_super_packet_is_spoilt_by_the_packet() -> None:
    """Of loss, lateness and copies at once nothing is left out and nothing invented."""
    emulated = line(10**9, loss_ratio=0.05, reorder_ratio=0.05, reorder_gap_s=0.01, duplicate_ratio=0.05)
    for number in range(500):
        emulated.offer(super_packet(20 * 1448), number * MS)
    delivered, counters = sum(sizes(emulated)), emulated.counters
    assert counters.offered == 10_000
    assert delivered == counters.delivered == counters.offered - counters.lost + counters.duplicated
    assert counters.delivered_bytes == counters.delivered * PACKET_BYTES


def test_a_policer_lets_a_burst_pass_and_then_its_rate() -> None:
    """Ten packets of 15,000 bytes of tokens at once, then one every millisecond; nothing waits."""
    emulated = line(policer_burst_bytes=15_000)
    taken = [emulated.offer(frame(), 0) for _ in range(12)]
    assert taken == [True] * 10 + [False] * 2
    assert [emulated.offer(frame(), moment * MS // 2) for moment in range(1, 7)] == [False, True] * 3
    assert len(arrivals(emulated, 0)) == 10
    assert emulated.offer(super_packet(3 * 1448), 5 * MS) is False
    assert sizes(emulated) == [1, 1, 1, 2]


def test_codel_drops_out_of_a_standing_queue_and_leaves_a_short_one_alone() -> None:
    """Twice the rate for 2 s: the queue is kept near its target; at half the rate nothing is dropped."""
    delays_ms = {}
    for gap_ns in (MS // 2, 2 * MS):
        emulated = line(queue="codel", buffer_s=10.0)
        waited = []
        for number in range(2 * S // gap_ns):
            now_ns = number * gap_ns
            waited += [until_ns - mark_of(got) * gap_ns for until_ns, got in arrivals(emulated, now_ns)]
            emulated.offer(frame(mark=number), now_ns)
        delays_ms[gap_ns] = waited[-1] / MS
        assert (emulated.counters.dropped > 0) == (gap_ns < MS)
    # An unresponsive sender is not controlled, but without CoDel it would wait for a second.
    assert delays_ms[2 * MS] == 1
    assert delays_ms[MS // 2] < 950


def test_a_changing_rate_counts_from_the_start_of_the_line() -> None:
    """Full rate for 10 ms, half for 10 ms, again and again: in 40 ms it carries 30 packets."""
    profile = LinkProfile(
        12_000_000, 12_000_000, 0.0, buffer_s=1.0, rate_steps=(RateStep(0.010, 1.0), RateStep(0.010, 0.5))
    )
    emulated = line_pair(profile, 1, start_ns=7 * S)[1]
    for _ in range(100):
        emulated.offer(frame(), 7 * S)
    assert len(arrivals(emulated, 7 * S + 40 * MS)) == 30
