"""Round-trip delay by opening TCP connections: from SYN to SYN/ACK, by the clock of the kernel's own TCP (RFC 9293).

The kernel notes when the SYN leaves and when the SYN/ACK is processed, to the microsecond, for its retransmission timer
(RFC 6298); TCP_INFO tells it. No code of ours runs between the two, so a busy interpreter or core does not show, and a
step of the wall clock does not either: that clock is not read.

A refusal (RST) proves that something on the path answers, but not what: firewalls and carriers' NATs send RSTs in a
server's name, and the kernel takes no time of them. So it is neither a delay nor a loss: it is counted apart.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import time
from collections.abc import Callable
from typing import Final

from probe.clock import NS_PER_S
from probe.errors import NotRunError
from probe.flows.echo.delays import Arrival
from probe.flows.echo.series import Pacer, Plan, Series, within

# Connections that wait at the same moment: each takes a descriptor, and a service has a thousand.
WAITING_MAX: Final = 64
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: no time to linger, so RST and no TIME_WAIT
_INFO_BYTES: Final = 104
_RTT = struct.Struct("=68xI")  # linux/tcp.h: tcpi_rtt in microseconds
_RETRANSMITS = struct.Struct("=100xI")  # tcpi_total_retrans
_NS_PER_US: Final = 1000
# Linux sends the second SYN a second after the first (RFC 6298 section 2.1). A delay that began with the second one
# ends that much after the connect call began; one that began with the first does not.
_SECOND_SYN_NS: Final = NS_PER_S // 2
# What connect(2) says when the answer is the network's and not the kernel's.
_ANSWERED: Final = frozenset({0, errno.EINPROGRESS, errno.ECONNREFUSED, errno.ECONNRESET})
_REFUSALS: Final = frozenset({errno.ECONNREFUSED, errno.ECONNRESET})


class Connect:
    """One series of connections to one address, each reset as soon as it stands.

    Args:
        open_socket: a non-blocking TCP socket of the link. Raises `NotRunError` when the link is down.
        address: whom to connect to.
        plan: how many, how far apart, and how long to wait for each.
    """

    def __init__(self, open_socket: Callable[[], socket.socket], address: tuple[str, int], plan: Plan) -> None:
        self._open_socket = open_socket
        self._address = address
        self._plan = plan
        self._series = Series()
        self._waiting: dict[int, tuple[socket.socket, asyncio.TimerHandle]] = {}
        self._began_ns: dict[int, int] = {}
        self._not_run: NotRunError | None = None
        self._progress = asyncio.Event()

    async def run(self) -> Series:
        """Connect as planned and wait until each is answered or its time is over.

        Raises:
            NotRunError: the link was down before the first one (`link_down`).
        """
        try:
            await Pacer(self._plan, self._send).run()
            while self._waiting:
                self._progress.clear()
                await within(self._progress, self._plan.time_out_s)
        finally:
            for sequence in tuple(self._waiting):
                self._end(sequence)
        if self._not_run is not None and not self._series.sent:
            raise self._not_run
        # A busy program may look at its sockets in another order than the answers came in.
        self._series.arrivals.sort(key=lambda one: self._began_ns[one.sequence] + (one.delay_ns or 0))
        return self._series

    def _send(self, sequence: int) -> bool:
        try:
            sock = self._open_socket()
        except NotRunError as error:
            self._not_run = error
            self._series.send_error = OSError(errno.ENETDOWN, str(error))
            return False
        except OSError as error:  # no descriptor left, for one
            self._series.send_error = error
            return True
        began_ns = time.monotonic_ns()
        refusal = _begin(sock, self._address)
        if refusal is not None:
            sock.close()
            self._series.send_error = refusal
            return not self._series.lost_link()
        loop = asyncio.get_running_loop()
        self._series.sent_sequences.append(sequence)
        self._began_ns[sequence] = began_ns
        self._waiting[sequence] = sock, loop.call_later(self._plan.time_out_s, self._end, sequence)
        loop.add_writer(sock.fileno(), self._on_answer, sequence)
        return True

    def _on_answer(self, sequence: int) -> None:
        sock = self._waiting[sequence][0]
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number in _REFUSALS:
            self._series.refused_sequences.add(sequence)
        if number:
            self._series.network_error = OSError(number, os.strerror(number))
        else:
            self._take(sequence, sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES))
        self._end(sequence)

    def _take(self, sequence: int, info: bytes) -> None:
        """Note the delay. One of the second SYN means that the first one, or its answer, was lost."""
        delay = _RTT.unpack_from(info)[0] * _NS_PER_US
        passed_ns = time.monotonic_ns() - self._began_ns[sequence]
        is_of_first = not _RETRANSMITS.unpack_from(info)[0] or passed_ns - delay < _SECOND_SYN_NS
        if is_of_first and delay <= self._plan.time_out_s * NS_PER_S:
            self._series.arrivals.append(Arrival(sequence, delay))

    def _end(self, sequence: int) -> None:
        sock, timer = self._waiting.pop(sequence)
        timer.cancel()
        asyncio.get_running_loop().remove_writer(sock.fileno())
        sock.close()
        self._progress.set()


def _begin(sock: socket.socket, address: tuple[str, int]) -> OSError | None:
    """Send the SYN; gives the kernel's refusal to."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        number = sock.connect_ex(address)
    except OSError as error:
        return error
    return None if number in _ANSWERED else OSError(number, os.strerror(number))
