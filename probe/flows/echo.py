"""The engine under every echo measurement: send numbered packets on a link's socket, collect what answers them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol

from probe.clock import NS_PER_S
from probe.errors import MeasurementFailedError
from probe.flows.delays import Arrival
from probe.flows.faults import failed, kind_of
from probe.flows.moments import Moment, ask_for_stamps, delay_ns, gives_stamps, now, stamp_of
from probe.messages import FailureKind, Operation

# Not 0, so that a reflector which counts on its own can be told from one that repeats our numbers
# (`delays.split_loss`). To the reflector it looks as if packet 0 had been lost on the way.
FIRST_SEQUENCE: Final = 1

# Each gap is drawn from interval * (1 +- this), so that the series cannot lock to something periodic (RFC 3432).
SPREAD_RATIO: Final = 0.1

_IP_RECVERR: Final = 11  # linux/in.h
_IPV6_RECVERR: Final = 25  # linux/in6.h
_EXTENDED_ERROR = struct.Struct("=I")  # linux/errqueue.h: ee_errno comes first in struct sock_extended_err
ANCILLARY_BYTES: Final = 256
# Longer than any Ethernet frame, jumbo frames included.
DATAGRAM_BYTES_MAX: Final = 9216
# What one wake-up reads from the error queue: the rest comes with the next one.
_ERRORS_PER_WAKE: Final = 64
# Replies read before a packet is sent: duplicates of a broken path must not hold up the next packet.
_REPLIES_PER_WAKE: Final = 64


class ByteCount(Protocol):
    """Where the cost of the series is kept."""

    sent_bytes: int
    received_bytes: int


@dataclass(frozen=True, slots=True)
class Reply:
    """What a datagram says when it answers one of our packets.

    `residence_ns` is how long the reflector kept the packet, by its own clock; `reflector_sequence` its own count.
    """

    sequence: int
    residence_ns: int = 0
    reflector_sequence: int | None = None


class EchoProtocol(Protocol):
    """The packets of one kind of echo."""

    def request(self, sequence: int, sent: Moment) -> bytes:
        """The packet to send now."""

    def reply(self, datagram: bytes) -> Reply | None:
        """Read what came in; absent when it answers none of our packets."""

    def quoted_sequence(self, quoted: bytes) -> int | None:
        """Which of our packets a network error quotes; absent when it cannot be told."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How many packets to send, how far apart, and how long to wait for each (Tmax of RFC 6673)."""

    packets: int
    interval_s: float
    time_out_s: float

    def duration_s_max(self) -> float:
        """The longest that the series can take."""
        return self.packets * self.interval_s * (1 + SPREAD_RATIO) + self.time_out_s


@dataclass(slots=True)
class Series:
    """What became of the packets. `sent` counts those that the kernel took.

    `send_error` is the last refusal of the kernel to send, `network_error` the last error that the network sent back.
    """

    sent: int = 0
    arrivals: list[Arrival] = field(default_factory=list)
    send_error: OSError | None = None
    network_error: OSError | None = None

    def lost_link(self) -> bool:
        """Whether the kernel said that the interface is gone."""
        return self.send_error is not None and kind_of(self.send_error) == FailureKind.LINK_LOST


def prepare(sock: socket.socket) -> None:
    """Ask for receive stamps and for every error that the network reports, not the fatal ones alone."""
    ask_for_stamps(sock)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)


class Echo:
    """One series over one connected, non-blocking socket."""

    def __init__(
        self,
        sock: socket.socket,
        protocol: EchoProtocol,
        plan: Plan,
        usage: ByteCount,
        read_clocks: Callable[[], Moment] = now,
    ) -> None:
        self._sock = sock
        self._protocol = protocol
        self._plan = plan
        self._usage = usage
        self._read_clocks = read_clocks
        self._is_stamped = gives_stamps(sock)
        self._series = Series()
        self._sent: dict[int, Moment] = {}
        self._waiting: dict[int, Moment] = {}
        self._progress = asyncio.Event()
        self._all_sent = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = 0.0

    async def run(self) -> Series:
        """Send the packets and wait until each is answered or its time is over."""
        loop = asyncio.get_running_loop()
        descriptor = self._sock.fileno()
        self._due_s = loop.time()
        if not self._is_stamped:
            loop.add_reader(descriptor, self._on_readable)
        try:
            self._step(loop, FIRST_SEQUENCE)
            await _within(self._all_sent, self._plan.duration_s_max())
            loop.add_reader(descriptor, self._on_readable)
            while self._waiting and (remaining_s := self._remaining_s(loop)) > 0:
                self._progress.clear()
                await _within(self._progress, remaining_s)
        finally:
            loop.remove_reader(descriptor)
            if self._timer is not None:
                self._timer.cancel()
        return self._series

    def _step(self, loop: asyncio.AbstractEventLoop, sequence: int) -> None:
        """Send one packet and arrange for the next: a chain of timers costs less than a task that sleeps.

        What the kernel stamps may wait in the socket until we are awake anyway: waking up for each reply would be
        half of what a series costs a small computer.
        """
        if self._is_stamped:
            self._read_what_came()
        self._send(sequence)
        if self._series.lost_link():
            # Nothing can come back over an interface that is gone, and nothing more can be said of the line.
            self._waiting.clear()
        if self._series.lost_link() or sequence >= FIRST_SEQUENCE + self._plan.packets - 1:
            self._all_sent.set()
            return
        gap_s = self._plan.interval_s * random.uniform(1 - SPREAD_RATIO, 1 + SPREAD_RATIO)  # noqa: S311 - spacing
        # Never earlier than now: a program held up for a second must not send a burst after it.
        self._due_s = max(self._due_s + gap_s, loop.time())
        self._timer = loop.call_at(self._due_s, self._step, loop, sequence + 1)

    def _remaining_s(self, loop: asyncio.AbstractEventLoop) -> float:
        """The time that is left for the last packet which is not answered yet."""
        last = next(reversed(self._waiting.values()))
        return last.monotonic_ns / NS_PER_S + self._plan.time_out_s - loop.time()

    def _send(self, sequence: int) -> None:
        error = self._try_send(sequence)
        if error is not None:
            # The kernel tells of an error that an earlier packet met at the next call, whatever that is, instead of
            # doing it. Once that error is read away, the answer is about this packet.
            self._read_errors()
            error = self._try_send(sequence)
        if error is not None:
            self._series.send_error = error

    def _try_send(self, sequence: int) -> OSError | None:
        moment = self._read_clocks()
        packet = self._protocol.request(sequence, moment)
        try:
            self._sock.send(packet)
        except OSError as error:
            return error
        self._series.sent += 1
        self._usage.sent_bytes += len(packet)
        self._sent[sequence] = self._waiting[sequence] = moment
        return None

    def _read_what_came(self) -> None:
        for _ in range(_REPLIES_PER_WAKE):
            if not self._on_readable():
                return

    def _on_readable(self) -> bool:
        """Read one reply, or the errors when there is none; says whether there was one."""
        try:
            datagram, ancillary, _, _ = self._sock.recvmsg(DATAGRAM_BYTES_MAX, ANCILLARY_BYTES)
        except OSError:
            # Also when there is nothing to read: a waiting error wakes us as well, and wakes us until it is read.
            self._read_errors()
            return False
        self._usage.received_bytes += len(datagram)
        reply = self._protocol.reply(datagram)
        if reply is not None and reply.sequence in self._sent:
            self._take(reply, stamp_of(ancillary), self._read_clocks())
        return True

    def _take(self, reply: Reply, stamp_ns: int | None, received: Moment) -> None:
        sent = self._sent[reply.sequence]
        delay = delay_ns(sent, stamp_ns, received, reply.residence_ns)
        took_ns = received.monotonic_ns - sent.monotonic_ns if delay is None else delay
        # What comes after Tmax is lost (RFC 6673 section 3), whoever waits for it.
        if took_ns <= self._plan.time_out_s * NS_PER_S:
            self._series.arrivals.append(Arrival(reply.sequence, delay, reply.reflector_sequence))
            self._settle(reply.sequence)

    def _settle(self, sequence: int) -> None:
        self._waiting.pop(sequence, None)
        self._progress.set()

    def _read_errors(self) -> None:
        for _ in range(_ERRORS_PER_WAKE):
            try:
                quoted, ancillary, _, _ = self._sock.recvmsg(DATAGRAM_BYTES_MAX, ANCILLARY_BYTES, socket.MSG_ERRQUEUE)
            except OSError:
                return
            self._series.network_error = error_of(ancillary) or self._series.network_error
            sequence = self._protocol.quoted_sequence(quoted)
            if sequence is not None:
                self._settle(sequence)


async def _within(event: asyncio.Event, time_out_s: float) -> None:
    """Wait for `event`, but no longer than that."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(time_out_s):
            await event.wait()


def error_of(ancillary: Iterable[tuple[int, int, bytes]]) -> OSError | None:
    """The error in a message of the socket's error queue (ip(7), IP_RECVERR)."""
    wanted = {(socket.IPPROTO_IP, _IP_RECVERR), (socket.IPPROTO_IPV6, _IPV6_RECVERR)}
    for level, kind, content in ancillary:
        if (level, kind) in wanted and len(content) >= _EXTENDED_ERROR.size:
            number = _EXTENDED_ERROR.unpack_from(content)[0]
            return OSError(number, f"the network reported: {os.strerror(number)}")
    return None


def raise_if_failed(series: Series, is_up: Callable[[], bool]) -> None:
    """Tell a series that measured the line from one in which the network, or the link itself, said no.

    Packets without any answer are no failure: they are a loss of everything, and that is a value.

    Raises:
        MeasurementFailedError: the link went away meanwhile (`link_lost`, even when some packets were answered: they
            would be read as loss on the line); or no packet could be sent; or nothing came back but an error.
    """
    sent_error, network_error = series.send_error, series.network_error
    if sent_error is not None and (series.lost_link() or not is_up()):
        raise MeasurementFailedError(Operation.SEND, FailureKind.LINK_LOST, str(sent_error)) from sent_error
    if sent_error is not None and not series.sent:
        raise failed(Operation.SEND, sent_error) from sent_error
    if len(series.arrivals) < series.sent and not is_up():
        raise MeasurementFailedError(Operation.RECEIVE, FailureKind.LINK_LOST, "the link went down meanwhile")
    if network_error is not None and not series.arrivals:
        raise failed(Operation.RECEIVE, network_error) from network_error
