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
_RTT: Final = 68
_RCV_SPACE: Final = 96
_BYTES_ACKED: Final = 120  # 4.1
_BYTES_RECEIVED: Final = 128  # 4.1
_MIN_RTT: Final = 148  # 4.6
_BYTES_RETRANS: Final = 208  # 4.19


@dataclass(frozen=True, slots=True)
class TcpInfo:
    """The fields that measurements use.

    `acked_bytes` is what the other side has confirmed, `received_bytes` what arrived in order; both count payload
    only. `min_rtt_s` is the smallest round trip that this side saw as a sender.
    """

    rtt_s: float | None
    min_rtt_s: float | None
    receive_space_bytes: int | None
    acked_bytes: int | None
    received_bytes: int | None
    retransmitted_bytes: int | None


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
        receive_space_bytes=_field(raw, _RCV_SPACE, _U32),
        acked_bytes=_field(raw, _BYTES_ACKED, _U64),
        received_bytes=_field(raw, _BYTES_RECEIVED, _U64),
        retransmitted_bytes=_field(raw, _BYTES_RETRANS, _U64),
    )


def _field(raw: bytes, offset: int, kind: struct.Struct) -> int | None:
    if len(raw) < offset + kind.size:
        return None
    return int(kind.unpack_from(raw, offset)[0])


def _seconds(microseconds: int | None) -> float | None:
    """A time of 0 means that the kernel has no sample yet."""
    return microseconds / _US_PER_S if microseconds else None
