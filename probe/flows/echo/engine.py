"""The engine under every echo measurement: send numbered packets on a link's socket, collect what answers them."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from probe.clock import NS_PER_S
from probe.flows.echo.delays import Arrival
from probe.flows.echo.series import ByteCount, Pacer, Plan, Series, within
from probe.flows.error_queue import ask_for_errors, read_error
from probe.flows.faults import kind_of
from probe.flows.moments import (
    Moment,
    Stamped,
    ask_for_departures,
    ask_for_stamps,
    delay_ns,
    departure_of,
    gives_departures,
    gives_stamps,
    now,
    stamp_of,
)
from probe.messages import FailureKind

__all__ = ["ANCILLARY_BYTES", "DATAGRAM_BYTES_MAX", "ByteCount", "Echo", "EchoProtocol", "Plan", "Reply", "prepare"]

ANCILLARY_BYTES: Final = 256
# Longer than any Ethernet frame, jumbo frames included.
DATAGRAM_BYTES_MAX: Final = 9216
# What one wake-up reads from the error queue: the rest comes with the next one.
_ERRORS_PER_WAKE: Final = 64
# Replies read before a packet is sent: duplicates of a broken path must not hold up the next packet.
_REPLIES_PER_WAKE: Final = 64


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


def prepare(sock: socket.socket) -> None:
    """Ask for the kernel's stamps and for every error that the network reports, not the fatal ones alone."""
    ask_for_stamps(sock)
    ask_for_errors(sock)
    ask_for_departures(sock)


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
        # Without stamps of what arrives those of what leaves would only wake us up.
        self._has_departures = self._is_stamped and gives_departures(sock)
        self._series = Series()
        self._sent: dict[int, Moment] = {}
        self._departed_ns: dict[int, int] = {}
        # Where in `sent_sequences` the kernel's own numbering of what leaves begins.
        self._numbered_from = 0
        self._waiting: dict[int, Moment] = {}
        self._emptied_ns = 0
        self._progress = asyncio.Event()

    async def run(self) -> Series:
        """Send the packets and wait until each is answered or its time is over."""
        loop = asyncio.get_running_loop()
        descriptor = self._sock.fileno()
        if not self._is_stamped:
            loop.add_reader(descriptor, self._on_readable)
        try:
            await Pacer(self._plan, self._send).run()
            loop.add_reader(descriptor, self._on_readable)
            while self._waiting and (remaining_s := self._remaining_s(loop)) > 0:
                self._progress.clear()
                await within(self._progress, remaining_s)
        finally:
            loop.remove_reader(descriptor)
        return self._series

    def _remaining_s(self, loop: asyncio.AbstractEventLoop) -> float:
        """The time that is left for the last packet which is not answered yet."""
        last = next(reversed(self._waiting.values()))
        return last.monotonic_ns / NS_PER_S + self._plan.time_out_s - loop.time()

    def _send(self, sequence: int) -> bool:
        """Send one packet; says whether there is any use in sending the next.

        What the kernel stamps may wait in the socket until we are awake anyway: waking up for each reply would be
        half of what a series costs a small computer.
        """
        if self._is_stamped:
            self._on_readable()
        error = self._try_send(sequence)
        if error is not None:
            # The kernel tells of an error that an earlier packet met at the next call, whatever that is, instead of
            # doing it. Once that error is read away, the answer is about this packet.
            self._read_errors()
            self._number_departures_anew()
            error = self._try_send(sequence)
        if error is not None:
            self._series.send_error = error
            self._number_departures_anew()
        if self._series.lost_link():
            # Nothing can come back over an interface that is gone, and nothing more can be said of the line.
            self._waiting.clear()
            return False
        return True

    def _try_send(self, sequence: int) -> OSError | None:
        moment = self._read_clocks()
        packet = self._protocol.request(sequence, moment)
        try:
            self._sock.send(packet)
        except OSError as error:
            return error
        self._series.sent_sequences.append(sequence)
        self._usage.sent_bytes += len(packet)
        self._sent[sequence] = self._waiting[sequence] = moment
        if self._has_departures:
            # It is there already unless the packet waits for the device: read it before it wakes us up.
            self._read_error()
        return None

    def _number_departures_anew(self) -> None:
        """Whether a packet that was refused has used up a number differs from kernel to kernel."""
        if self._has_departures:
            ask_for_departures(self._sock)
            self._numbered_from = self._series.sent

    def _on_readable(self) -> None:
        """Read what is there, errors and the kernel's own news first: a waiting one wakes us until it is read."""
        self._read_errors()
        for _ in range(_REPLIES_PER_WAKE):
            if not self._read_reply():
                return

    def _read_reply(self) -> bool:
        """Read one datagram; says whether there was one."""
        try:
            datagram, ancillary, _, _ = self._sock.recvmsg(DATAGRAM_BYTES_MAX, ANCILLARY_BYTES)
        except OSError:
            self._emptied_ns = time.monotonic_ns()
            return False
        self._usage.received_bytes += len(datagram)
        reply = self._protocol.reply(datagram)
        if reply is not None and reply.sequence in self._sent:
            self._take(reply, stamp_of(ancillary), self._read_clocks())
        return True

    def _take(self, reply: Reply, stamp_ns: int | None, received: Moment) -> None:
        sent, departed_ns = self._sent[reply.sequence], self._departed_ns.get(reply.sequence)
        delay = delay_ns(sent, stamp_ns, received, reply.residence_ns, departed_ns)
        # Without a delay nothing is known but that it was not there yet when the socket was empty last: a clock step
        # must not make a loss of a reply that waited for us.
        away_ns = self._emptied_ns - sent.monotonic_ns if delay is None else delay + reply.residence_ns
        # What comes after Tmax is lost (RFC 6673 section 3), whoever waits for it.
        if away_ns > self._plan.time_out_s * NS_PER_S:
            return
        sent_by_then = self._series.sent_sequences[-1]
        self._series.arrivals.append(Arrival(reply.sequence, delay, reply.reflector_sequence, sent_by_then))
        if delay is not None:
            self._series.note_stamped(_who_stamped(stamp_ns, departed_ns))
        self._settle(reply.sequence)

    def _settle(self, sequence: int) -> None:
        self._waiting.pop(sequence, None)
        self._progress.set()

    def _read_errors(self) -> None:
        for _ in range(_ERRORS_PER_WAKE):
            if not self._read_error():
                return

    def _read_error(self) -> bool:
        """Read one message of the error queue; says whether there was one."""
        try:
            quoted, ancillary, _, _ = self._sock.recvmsg(DATAGRAM_BYTES_MAX, ANCILLARY_BYTES, socket.MSG_ERRQUEUE)
        except OSError:
            return False
        departure = departure_of(ancillary)
        if departure is not None:
            self._note_departure(*departure)
        else:
            self._note_error(quoted, ancillary)
        return True

    def _note_departure(self, number: int, stamp_ns: int) -> None:
        at = self._numbered_from + number
        if at >= self._series.sent:
            return
        sequence = self._series.sent_sequences[at]
        # One that seems to have left before it was sent is another packet's, or a clock was stepped.
        if stamp_ns >= self._sent[sequence].wall_ns:
            self._departed_ns[sequence] = stamp_ns

    def _note_error(self, quoted: bytes, ancillary: Iterable[tuple[int, int, bytes]]) -> None:
        error = read_error(quoted, ancillary)
        if error is None:
            return
        reported = error.as_error()
        self._series.network_error = reported
        if error.reporter is not None and kind_of(reported) == FailureKind.REFUSED:
            self._series.refused_by.add(error.reporter)
        sequence = self._protocol.quoted_sequence(quoted)
        if sequence is not None:
            self._settle(sequence)


def _who_stamped(stamp_ns: int | None, departed_ns: int | None) -> Stamped:
    if stamp_ns is None:
        return Stamped.USER
    return Stamped.KERNEL_RECEIVE if departed_ns is None else Stamped.KERNEL_BOTH
