"""TCP_INFO (linux/tcp.h): what the kernel knows of one connection.

The structure only ever grew; an old kernel gives a shorter one, and what it does not have is absent.
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import Final

import msgspec

# Larger than any version of `struct tcp_info` so far; the kernel gives what it has.
_BYTES_MAX: Final = 256
_MIN_RTT_UNKNOWN: Final = 0xFFFFFFFF  # tcp_min_rtt before the first sample
_US_PER_S: Final = 1e6
_BITS: Final = 8

# The fields that are read, in their order, with their offsets within the structure; each with the first kernel that
# has it, where that matters. They are read in one go: a transfer reads some 80 to 160 structures a second.
_FIELDS: Final = (
    (20, "I"),  # rcv_mss
    (24, "I"),  # unacked
    (28, "I"),  # sacked
    (68, "I"),  # rtt
    (92, "I"),  # rcv_rtt
    (96, "I"),  # rcv_space
    (120, "Q"),  # bytes_acked, 4.1
    (128, "Q"),  # bytes_received, 4.1
    (144, "I"),  # notsent_bytes, 4.6
    (148, "I"),  # min_rtt, 4.6
    (152, "I"),  # data_segs_in, 4.6
    (160, "Q"),  # delivery_rate, 4.9
    (168, "Q"),  # busy_time, 4.10, with the next two
    (176, "Q"),  # rwnd_limited
    (184, "Q"),  # sndbuf_limited
    (200, "Q"),  # bytes_sent, 4.19
    (208, "Q"),  # bytes_retrans, 4.19
    (220, "I"),  # reord_seen, 4.19
    (224, "I"),  # rcv_ooopack, 5.4
)
_SIZES: Final = {"I": 4, "Q": 8}


def _structure() -> struct.Struct:
    """All fields, with what lies between them passed over."""
    layout, end = "=", 0
    for offset, kind in _FIELDS:
        layout += f"{offset - end}x{kind}"
        end = offset + _SIZES[kind]
    return struct.Struct(layout)


_STRUCTURE: Final = _structure()


class TcpInfo(msgspec.Struct, frozen=True, gc=False):
    """The fields that measurements use.

    `acked_bytes` is what the other side has confirmed, `received_bytes` what arrived in order; both count payload
    only (and `acked_bytes` the SYN). `min_rtt_s` is the smallest round trip that this side saw as a sender,
    `receive_rtt_s` its present estimate as a receiver. `sent_bytes` includes what was sent again. `sacked_segments`
    have arrived at the other side out of order and wait there; `out_of_order_segments` did so here, all told.
    `delivery_rate_bps` is the kernel's own latest estimate of what this sender gets through. Of `busy_s`, the time with
    something to send, it waited `receiver_limited_s` for the other side's window and `buffer_limited_s` for its own
    buffer. `reorderings` is how often this sender saw its packets overtaken.
    """

    rtt_s: float | None = None
    min_rtt_s: float | None = None
    receive_rtt_s: float | None = None
    receive_space_bytes: int | None = None
    acked_bytes: int | None = None
    received_bytes: int | None = None
    retransmitted_bytes: int | None = None
    sent_bytes: int | None = None
    receive_segment_bytes: int | None = None
    unacked_segments: int | None = None
    sacked_segments: int | None = None
    not_sent_bytes: int | None = None
    received_segments: int | None = None
    out_of_order_segments: int | None = None
    delivery_rate_bps: int | None = None
    busy_s: float | None = None
    receiver_limited_s: float | None = None
    buffer_limited_s: float | None = None
    reorderings: int | None = None


def read_tcp_info(sock: socket.socket) -> TcpInfo:
    """Ask the kernel.

    Raises:
        OSError: the socket is closed.
    """
    return parse_tcp_info(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_MAX))


def parse_tcp_info(raw: bytes) -> TcpInfo:
    """Read the structure, however long this kernel's is."""
    (
        receive_segment_bytes,
        unacked,
        sacked,
        rtt_us,
        receive_rtt_us,
        receive_space_bytes,
        acked_bytes,
        received_bytes,
        not_sent_bytes,
        min_rtt_us,
        received_segments,
        delivery_bytes_per_s,
        busy_us,
        receiver_limited_us,
        buffer_limited_us,
        sent_bytes,
        retransmitted_bytes,
        reorderings,
        out_of_order,
    ) = _STRUCTURE.unpack_from(raw) if len(raw) >= _STRUCTURE.size else _fields_of_old(raw)
    # By position and without calls: all streams' structures are read 20 times a second, in mid-transfer.
    return TcpInfo(
        rtt_us / _US_PER_S if rtt_us else None,  # a time of 0 means that the kernel has no sample yet
        min_rtt_us / _US_PER_S if min_rtt_us and min_rtt_us != _MIN_RTT_UNKNOWN else None,
        receive_rtt_us / _US_PER_S if receive_rtt_us else None,
        receive_space_bytes,
        acked_bytes,
        received_bytes,
        retransmitted_bytes,
        sent_bytes,
        receive_segment_bytes,
        unacked,
        sacked,
        not_sent_bytes,
        received_segments,
        out_of_order,
        delivery_bytes_per_s * _BITS if delivery_bytes_per_s else None,  # none before the first acknowledgement
        None if busy_us is None else busy_us / _US_PER_S,
        None if receiver_limited_us is None else receiver_limited_us / _US_PER_S,
        None if buffer_limited_us is None else buffer_limited_us / _US_PER_S,
        reorderings,
    )


def _fields_of_old(raw: bytes) -> tuple[int | None, ...]:
    """The same of a kernel whose structure is shorter."""
    return tuple(
        int.from_bytes(raw[offset : offset + _SIZES[kind]], sys.byteorder)
        if len(raw) >= offset + _SIZES[kind]
        else None
        for offset, kind in _FIELDS
    )
