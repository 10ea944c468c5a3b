"""The arithmetic of the emulated line, with time passed in."""

from __future__ import annotations

import random
import statistics
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_controller.lab.line import (
    VNET_HEADER_BYTES,
    Jitter,
    Line,
    LinkProfile,
    line_pair,
    tcp_payload_bps,
    wire_bytes,
)

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


def line(rate_bps: int = 12_000_000, **changes: float) -> Line:
    """The download of a line on which a packet of 1500 bytes takes 1 ms."""
    profile = {"delay_s": 0.0, "jitter_s": 0.0, "loss_ratio": 0.0, "buffer_s": 1.0} | changes
    return line_pair(LinkProfile(rate_bps, rate_bps, **profile), 1)[1]


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


@given(st.integers(0, 2**32), st.lists(st.integers(0, 30 * MS), min_size=2, max_size=200))
def test_jitter_keeps_the_order_and_its_bounds(seed: int, gaps_ns: list[int]) -> None:
    """However packets are spaced, none overtakes another, and none is off by more than the amplitude."""
    jitter = Jitter(2 * MS, seed)
    now_ns = last_ns = 0
    for gap_ns in gaps_ns:
        now_ns += gap_ns
        deviation_ns = jitter.at(now_ns)
        assert abs(deviation_ns) <= 2 * MS
        assert now_ns + deviation_ns >= last_ns or last_ns == 0
        last_ns = now_ns + deviation_ns


@pytest.mark.parametrize("spacing_ns", [MS // 10, 20 * MS])
def test_the_median_delay_under_jitter_is_the_configured_one(spacing_ns: int) -> None:
    """Whether packets come densely or sparsely: keeping the order does not push the median up."""
    jitter = Jitter(2 * MS, 7)
    deviations = [jitter.at(number * spacing_ns) for number in range(200_000)]
    assert abs(statistics.median(deviations)) < 0.1 * MS
    assert statistics.pstdev(deviations) > 0.7 * MS


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
    upload, download = line_pair(LinkProfile(40_000_000, 15_000_000, 0.045, 0.004), 1)
    assert (upload.rate_bps, download.rate_bps) == (15_000_000, 40_000_000)
    moments = [number * 50 * MS for number in range(10)]
    assert [upload.jitter.at(moment) for moment in moments] != [download.jitter.at(moment) for moment in moments]


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
    assert all(moment >= 3 * MS for moment, _ in seen)  # 5 ms of delay less 2 ms of jitter


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
