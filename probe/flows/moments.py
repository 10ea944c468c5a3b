"""When a packet left and when it came back: two clocks, the kernel's stamp, and the delay between them.

The kernel stamps what arrives (SO_TIMESTAMPNS_NEW): a stamp taken in Python after `recv` is wrong by milliseconds when
the interpreter is busy. Such stamps are of the wall clock, so a step of that clock between sending and receiving would
be read as delay; there is no delay then.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from probe.clock import NS_PER_S

# A wall clock that moved further than this against the monotonic one was stepped; slewing moves both alike.
CLOCK_STEP_NS: Final = 500_000
# Two clocks cannot be read at once. A pair read within this span is good enough to see a step; the tries bound the
# wait on a busy host.
_PAIR_SPAN_NS: Final = 50_000
_PAIR_TRIES: Final = 5

SO_TIMESTAMPNS_NEW: Final = 64  # asm-generic/socket.h; a 16-byte stamp on 32-bit userland too
_STAMP = struct.Struct("=qq")  # struct __kernel_timespec


@dataclass(frozen=True, slots=True)
class Moment:
    """One moment on the wall clock and on the monotonic one."""

    wall_ns: int
    monotonic_ns: int


def ask_for_stamps(sock: socket.socket) -> None:
    """Have the kernel stamp what arrives. One older than 5.1 cannot, and then there are no stamps."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS_NEW, 1)


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


def delay_ns(sent: Moment, stamp_ns: int | None, received: Moment, residence_ns: int = 0) -> int | None:
    """Round-trip delay without the reflector's share (RFC 2681, RFC 8762 section 4.3).

    Args:
        sent: when the packet left, on both clocks.
        stamp_ns: the kernel's wall-clock stamp of the reply; absent where the kernel gives none.
        received: when the program read the reply, on both clocks.
        residence_ns: how long the reflector says that it kept the packet.

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
        delay = stamp_ns - sent.wall_ns - residence_ns
    possible = residence_ns >= 0 and 0 <= delay <= elapsed_ns + CLOCK_STEP_NS
    return delay if possible else None


def stamp_of(ancillary: Iterable[tuple[int, int, bytes]]) -> int | None:
    """The kernel's receive stamp in wall-clock ns, absent where it gave none."""
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS_NEW and len(content) >= _STAMP.size:
            seconds, nanoseconds = _STAMP.unpack_from(content)
            return int(seconds * NS_PER_S + nanoseconds)
    return None
