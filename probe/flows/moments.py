"""When a packet left and when it came back: two clocks, the kernel's stamps, and the delay between them.

The kernel stamps what arrives (SO_TIMESTAMPNS_NEW): a stamp taken in Python after `recv` is wrong by milliseconds when
the interpreter is busy. Where the driver can, it also stamps what leaves, when the packet is handed to the device
(SO_TIMESTAMPING_NEW, read from the error queue): the way from here through the kernel is no part of the line. Such
stamps are of the wall clock, so a step of that clock between sending and receiving would be read as delay; there is no
delay then.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from probe.clock import NS_PER_S

# A wall clock that moved further than this against the monotonic one was stepped; slewing moves both alike.
CLOCK_STEP_NS: Final = 500_000
# Two clocks cannot be read at once. A pair read within this span is good enough to see a step; the tries bound the
# wait on a busy host.
_PAIR_SPAN_NS: Final = 50_000
_PAIR_TRIES: Final = 5

# What the four stamps of a delay may be wrong by together. Within one host a packet can seem to arrive that much before
# it left; this is no step of a clock, and the delay is as good as none.
STAMP_ERROR_NS: Final = 50_000

SO_TIMESTAMPNS_NEW: Final = 64  # asm-generic/socket.h; a 16-byte stamp on 32-bit userland too
_STAMP = struct.Struct("=qq")  # struct __kernel_timespec
SO_TIMESTAMPING_NEW: Final = 65  # asm-generic/socket.h; the first of its three stamps is the kernel's own
# linux/net_tstamp.h: stamp in software what leaves, report it, number the packets, and do not send them back to us.
_TX_SOFTWARE, _SOFTWARE, _OPT_ID, _OPT_TSONLY = 1 << 1, 1 << 4, 1 << 7, 1 << 11
_DEPARTURE_FLAGS: Final = _TX_SOFTWARE | _SOFTWARE | _OPT_ID | _OPT_TSONLY
# struct sock_extended_err (linux/errqueue.h): errno, origin, type, code, pad, info, data.
_EXTENDED_ERROR = struct.Struct("=IBBBxII")
_ORIGIN_TIMESTAMPING: Final = 4
_STAMP_OF_SENDING: Final = 0  # SCM_TSTAMP_SND: handed to the device
IP_RECVERR: Final = 11  # linux/in.h
IPV6_RECVERR: Final = 25  # linux/in6.h
_ERROR_KINDS: Final = frozenset({(socket.IPPROTO_IP, IP_RECVERR), (socket.IPPROTO_IPV6, IPV6_RECVERR)})


class Stamped(IntEnum):
    """Who read the clock for a delay, the worst first."""

    USER = 0
    KERNEL_RECEIVE = 1
    KERNEL_BOTH = 2


@dataclass(frozen=True, slots=True)
class Moment:
    """One moment on the wall clock and on the monotonic one."""

    wall_ns: int
    monotonic_ns: int


def ask_for_stamps(sock: socket.socket) -> None:
    """Have the kernel stamp what arrives. One older than 5.1 cannot, and then there are no stamps."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS_NEW, 1)


def ask_for_departures(sock: socket.socket) -> None:
    """Have the kernel stamp what leaves, where it can, and number these packets from 0 again."""
    with contextlib.suppress(OSError):
        # The numbers start again only when the option is switched on.
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING_NEW, 0)
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING_NEW, _DEPARTURE_FLAGS)


def departure_of(ancillary: Iterable[tuple[int, int, bytes]]) -> tuple[int, int] | None:
    """The number of a packet and the wall-clock ns at which it left; absent when the message tells of none."""
    messages = list(ancillary)
    stamp_ns = departure_stamp_of(messages)
    if stamp_ns is None:
        return None
    for level, kind, content in messages:
        if (level, kind) in _ERROR_KINDS and len(content) >= _EXTENDED_ERROR.size:
            _, origin, _, _, info, number = _EXTENDED_ERROR.unpack_from(content)
            if origin == _ORIGIN_TIMESTAMPING and info == _STAMP_OF_SENDING:
                return int(number), stamp_ns
    return None


def departure_stamp_of(ancillary: Iterable[tuple[int, int, bytes]]) -> int | None:
    """The wall-clock ns at which some packet left, or arrived; absent when there is no such stamp."""
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPING_NEW and len(content) >= _STAMP.size:
            seconds, nanoseconds = _STAMP.unpack_from(content)
            return int(seconds * NS_PER_S + nanoseconds) or None
    return None


def gives_departures(sock: socket.socket) -> bool:
    """Whether this socket was asked for stamps of what leaves. Only a packet shows whether the device has them."""
    try:
        return bool(sock.getsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING_NEW))
    except OSError:
        return False


def gives_stamps(sock: socket.socket) -> bool:
    """Whether the kernel stamps what arrives on this socket."""
    try:
        return bool(sock.getsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS_NEW))
    except OSError:
        return False


def now() -> Moment:
    """Read both clocks together."""
    for _ in range(_PAIR_TRIES):
        before = time.monotonic_ns()
        wall = time.time_ns()
        after = time.monotonic_ns()
        if after - before <= _PAIR_SPAN_NS:
            break
    return Moment(wall_ns=wall, monotonic_ns=(before + after) // 2)


def delay_ns(
    sent: Moment, stamp_ns: int | None, received: Moment, residence_ns: int = 0, departed_ns: int | None = None
) -> int | None:
    """Round-trip delay without the reflector's share (RFC 2681, RFC 8762 section 4.3).

    Args:
        sent: when the program gave the packet to the kernel, on both clocks.
        stamp_ns: the kernel's wall-clock stamp of the reply; absent where the kernel gives none.
        received: when the program read the reply, on both clocks.
        residence_ns: how long the reflector says that it kept the packet.
        departed_ns: the kernel's wall-clock stamp of the packet; absent where the kernel gives none.

    Returns:
        The delay, or absent when a clock was stepped meanwhile, here or at the reflector.
    """
    elapsed_ns = received.monotonic_ns - sent.monotonic_ns
    stepped_ns = (received.wall_ns - sent.wall_ns) - elapsed_ns
    if stamp_ns is None:
        delay = elapsed_ns - residence_ns
    elif abs(stepped_ns) > CLOCK_STEP_NS:
        return None
    else:
        delay = stamp_ns - (sent.wall_ns if departed_ns is None else departed_ns) - residence_ns
    possible = residence_ns >= 0 and -STAMP_ERROR_NS <= delay <= elapsed_ns + CLOCK_STEP_NS
    return max(delay, 0) if possible else None


def stamp_of(ancillary: Iterable[tuple[int, int, bytes]]) -> int | None:
    """The kernel's receive stamp in wall-clock ns, absent where it gave none."""
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS_NEW and len(content) >= _STAMP.size:
            seconds, nanoseconds = _STAMP.unpack_from(content)
            return int(seconds * NS_PER_S + nanoseconds)
    return None
