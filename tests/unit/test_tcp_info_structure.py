"""TCP_INFO of kernels old and new."""

from __future__ import annotations

import struct

from probe.flows.tcp_info import parse_tcp_info


def structure() -> bytes:
    """A `struct tcp_info` as Linux 6 gives it, with a value at each offset that is read."""
    raw = bytearray(256)
    words = {20: 1448, 24: 10, 28: 4, 68: 20_000, 96: 65_535, 144: 77, 148: 9_000, 152: 500, 220: 2, 224: 30}
    for offset, value in words.items():
        struct.pack_into("=I", raw, offset, value)
    longs = {120: 1 << 40, 128: 1 << 41, 160: 125_000, 168: 3_000_000, 176: 1_000_000, 184: 0, 200: 1 << 42, 208: 1448}
    for offset, value in longs.items():
        struct.pack_into("=Q", raw, offset, value)
    return bytes(raw)


def test_a_new_kernel_gives_everything() -> None:
    """64-bit counters, microseconds as seconds."""
    info = parse_tcp_info(structure())
    assert (info.rtt_s, info.min_rtt_s, info.receive_space_bytes) == (0.02, 0.009, 65_535)
    assert (info.acked_bytes, info.received_bytes, info.retransmitted_bytes) == (1 << 40, 1 << 41, 1448)


def test_what_a_sender_and_a_receiver_know() -> None:
    """Segments on their way and out of order; the rate in bits; time held up, where 0 is a value."""
    info = parse_tcp_info(structure())
    assert (info.receive_segment_bytes, info.unacked_segments, info.sacked_segments) == (1448, 10, 4)
    assert (info.not_sent_bytes, info.received_segments, info.out_of_order_segments) == (77, 500, 30)
    assert (info.sent_bytes, info.delivery_rate_bps, info.reorderings) == (1 << 42, 1_000_000, 2)
    assert (info.busy_s, info.receiver_limited_s, info.buffer_limited_s) == (3.0, 1.0, 0.0)


def test_an_old_kernel_gives_less() -> None:
    """Linux 4.0 ends at 120 bytes, 4.9 at 192: what is not there is absent, never zero."""
    ancient, old = parse_tcp_info(structure()[:120]), parse_tcp_info(structure()[:192])
    assert ancient.rtt_s == 0.02
    assert ancient.acked_bytes is None
    assert ancient.min_rtt_s is None
    assert old.acked_bytes == 1 << 40
    assert old.retransmitted_bytes is None
    assert old.out_of_order_segments is None
    assert ancient.delivery_rate_bps is None
    assert ancient.busy_s is None
    assert parse_tcp_info(b"").rtt_s is None


def test_no_sample_yet_is_absent() -> None:
    """Before the first round trip `rtt` is 0 and `min_rtt` all ones."""
    raw = bytearray(structure())
    struct.pack_into("=I", raw, 68, 0)
    struct.pack_into("=I", raw, 148, 0xFFFFFFFF)
    info = parse_tcp_info(bytes(raw))
    assert info.rtt_s is None
    assert info.min_rtt_s is None
