"""TCP_INFO (linux/tcp.h): what the kernel knows of one connection.

The structure only ever grew; an old kernel gives a shorter one, and what it does not have is absent.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Final

# Larger than any version of `struct tcp_info` so far; the kernel gives what it has.
_BYTES_MAX: Final = 256
_U32: Final = struct.Struct("=I")
_U64: Final = struct.Struct("=Q")
_MIN_RTT_UNKNOWN: Final = 0xFFFFFFFF  # tcp_min_rtt before the first sample
_US_PER_S: Final = 1e6

# Offsets within `struct tcp_info`; the first kernel with the field is named where it matters.
_RCV_MSS: Final = 20
_UNACKED: Final = 24
_SACKED: Final = 28
_RTT: Final = 68
_RCV_RTT: Final = 92
_RCV_SPACE: Final = 96
_BYTES_ACKED: Final = 120  # 4.1
_BYTES_RECEIVED: Final = 128  # 4.1
_NOTSENT_BYTES: Final = 144  # 4.6
_MIN_RTT: Final = 148  # 4.6
_DATA_SEGS_IN: Final = 152  # 4.6
_DELIVERY_RATE: Final = 160  # 4.9
_BUSY_TIME: Final = 168  # 4.10, with the next two
_RWND_LIMITED: Final = 176
_SNDBUF_LIMITED: Final = 184
_BYTES_SENT: Final = 200  # 4.19
_BYTES_RETRANS: Final = 208  # 4.19
_REORD_SEEN: Final = 220  # 4.19
_RCV_OOOPACK: Final = 224  # 5.4


@dataclass(frozen=True, slots=True)
class TcpInfo:
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
    min_rtt_us = _field(raw, _MIN_RTT, _U32)
    return TcpInfo(
        rtt_s=_seconds(_field(raw, _RTT, _U32)),
        min_rtt_s=None if min_rtt_us == _MIN_RTT_UNKNOWN else _seconds(min_rtt_us),
        receive_rtt_s=_seconds(_field(raw, _RCV_RTT, _U32)),
        receive_space_bytes=_field(raw, _RCV_SPACE, _U32),
        acked_bytes=_field(raw, _BYTES_ACKED, _U64),
        received_bytes=_field(raw, _BYTES_RECEIVED, _U64),
        retransmitted_bytes=_field(raw, _BYTES_RETRANS, _U64),
        sent_bytes=_field(raw, _BYTES_SENT, _U64),
        receive_segment_bytes=_field(raw, _RCV_MSS, _U32),
        unacked_segments=_field(raw, _UNACKED, _U32),
        sacked_segments=_field(raw, _SACKED, _U32),
        not_sent_bytes=_field(raw, _NOTSENT_BYTES, _U32),
        received_segments=_field(raw, _DATA_SEGS_IN, _U32),
        out_of_order_segments=_field(raw, _RCV_OOOPACK, _U32),
        delivery_rate_bps=_bits(_field(raw, _DELIVERY_RATE, _U64)),
        busy_s=_duration_s(_field(raw, _BUSY_TIME, _U64)),
        receiver_limited_s=_duration_s(_field(raw, _RWND_LIMITED, _U64)),
        buffer_limited_s=_duration_s(_field(raw, _SNDBUF_LIMITED, _U64)),
        reorderings=_field(raw, _REORD_SEEN, _U32),
    )


def _field(raw: bytes, offset: int, kind: struct.Struct) -> int | None:
    if len(raw) < offset + kind.size:
        return None
    return int(kind.unpack_from(raw, offset)[0])


def _seconds(microseconds: int | None) -> float | None:
    """A time of 0 means that the kernel has no sample yet."""
    return microseconds / _US_PER_S if microseconds else None


def _duration_s(microseconds: int | None) -> float | None:
    """Here 0 is a duration."""
    return None if microseconds is None else microseconds / _US_PER_S


def _bits(bytes_per_s: int | None) -> int | None:
    """No rate is known before the first acknowledgement."""
    return bytes_per_s * 8 if bytes_per_s else None
