"""How long an answer takes from the reading of the clock to the device, learnt from the kernel's own stamps.

The time of sending has to stand in a STAMP answer before it is sent. What passes until the packet is at the device,
some hundredths of a millisecond, the sender cannot tell from delay on the line: so the reflector writes the time at
which it expects the packet to leave (RFC 8762 section 4.3: the timestamp is that of transmission).
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections import deque
from typing import Final

from probe.flows.moments import SO_TIMESTAMPING_NEW, departure_stamp_of

# linux/net_tstamp.h: report software stamps without the packet; and, for one packet, make one when it leaves.
_SOFTWARE: Final = 1 << 4
_OPT_TSONLY: Final = 1 << 11
_TX_SOFTWARE: Final = 1 << 1
_ASK = [(socket.SOL_SOCKET, SO_TIMESTAMPING_NEW, struct.pack("=I", _TX_SOFTWARE))]
_ANCILLARY_BYTES: Final = 256
# Each packet of a slow series, few of a fast one: what is rare takes longer, as nothing of it is in the caches.
_SAMPLE_PERIOD_S: Final = 0.05
_SAMPLES: Final = 15
_SAMPLES_MIN: Final = 4  # the first packet after a rest takes several times as long as those that follow
# A longer one is not the way to the device but a process that was held up.
_LAG_NS_MAX: Final = 1_000_000
# Stamps read at once: those that came late.
_STAMPS_MAX: Final = 16


class SendLag:
    """The lag of one socket's packets.

    Attributes:
        lag_ns: what to add to the clock: the least of what was seen lately, as the figure is to be exceeded by nearly
            every packet, or delays come out shorter than the line. 0 until the kernel has told a few times, for ever
            where it does not.
    """

    def __init__(self) -> None:
        self.lag_ns = 0
        self._lags: deque[int] = deque(maxlen=_SAMPLES)
        self._due_s = 0.0
        self._is_able = self._is_asked = self._is_late = False

    def prepare(self, sock: socket.socket) -> None:
        """Have the kernel report stamps on this socket, where it can."""
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING_NEW, _SOFTWARE | _OPT_TSONLY)
            self._is_able = True

    def ask(self, now_s: float) -> list[tuple[int, int, bytes]]:
        """The ancillary data of the packet to send now: with the wish for a stamp, or none."""
        self._is_asked = self._is_able and now_s >= self._due_s
        if not self._is_asked:
            return []
        self._due_s = now_s + _SAMPLE_PERIOD_S
        return _ASK

    def learn(self, sock: socket.socket, clock_ns: int) -> None:
        """Read the stamp of the packet that was just sent, for which the clock was read as `clock_ns`."""
        if not self._is_asked:
            return
        self._is_asked = False
        stamp_ns = _newest_stamp(sock)
        self._is_late = stamp_ns is None
        if stamp_ns is None or not 0 <= stamp_ns - clock_ns <= _LAG_NS_MAX:
            return
        self._lags.append(stamp_ns - clock_ns)
        if len(self._lags) >= _SAMPLES_MIN:
            self.lag_ns = min(self._lags)

    def drain(self, sock: socket.socket) -> None:
        """Read away a stamp that was not there in time: one that is left would wake the event loop for ever."""
        if self._is_late:
            self._is_late = _newest_stamp(sock) is None


def _newest_stamp(sock: socket.socket) -> int | None:
    newest_ns: int | None = None
    for _ in range(_STAMPS_MAX):
        try:
            _, ancillary, _, _ = sock.recvmsg(0, _ANCILLARY_BYTES, socket.MSG_ERRQUEUE)
        except OSError:
            break
        newest_ns = departure_stamp_of(ancillary) or newest_ns
    return newest_ns
