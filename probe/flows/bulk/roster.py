"""The streams of one transfer: those that run, those that have ended, and how many there should be."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from typing import Final

from probe.errors import MeasurementFailedError, NotRunError
from probe.flows.bulk.allowance import Allowance
from probe.flows.bulk.dialects import StreamMaker
from probe.flows.bulk.stream import Order, Stream
from probe.flows.tcp_info import TcpInfo
from probe.messages import FailureKind, Operation

# New streams begin one after the other: their slow starts would overshoot, and their losses come, all at once.
STAGGER_S: Final = 0.01
# A stream that was cut after it had moved bytes is replaced, so that the rest of the transfer is like its beginning.
_REPLACED_MAX: Final = 8
# Streams that the peer ends properly are replaced; one that ends thousands of them is not a peer.
_OPENED_MAX: Final = 256


class Roster:
    """Opens, replaces and closes streams.

    Attributes:
        wanted: how many there should be.
        running: those that run, by file descriptor.
        flowing: those of them that only pass bytes on.
        ended: all others, with their last counts.
        failed: how many were given up on.
        first_problem: why the first of those was.
    """

    def __init__(self, order: Order, open_socket: Callable[[], socket.socket], allowance: Allowance) -> None:
        self.wanted = 1  # it tells the round trip, by which the number of the others is chosen
        self.running: dict[int, Stream] = {}
        self.flowing: list[Stream] = []
        self.ended: list[Stream] = []
        self.failed = 0
        self.first_problem: MeasurementFailedError | None = None
        self._open_socket, self._allowance = open_socket, allowance
        self._maker = StreamMaker(order)
        self._epoll = select.epoll()
        self._opened = self._replaced = self._spent = self._successors_due = self._ended_bytes = 0
        self._next_open_s = 0.0

    def poll(self, wait_s: float) -> list[tuple[Stream, int]]:
        """The streams that something has happened to, with its events, after `wait_s` seconds at most."""
        return [(self.running[number], events) for number, events in self._epoll.poll(wait_s)]

    @property
    def missing(self) -> int:
        """How many there should be, less those that are, those that have done their part, and those that failed."""
        if self._allowance.is_empty:
            return 0
        return max(0, self.wanted - len(self.running) - self._spent - (self.failed - self._replaced))

    @property
    def owes_bytes(self) -> bool:
        """Whether something of what one of them took is still to come, or more can be taken."""
        return not self._allowance.is_empty or any(stream.owed_bytes for stream in self.running.values())

    @property
    def is_spent(self) -> bool:
        """Whether one has ended because the allowance is used up."""
        return self._spent > 0

    @property
    def carrying(self) -> int:
        """How many carry the transfer: also one that is about to follow another which the peer has ended."""
        return len(self.running) + self._spent + min(self._successors_due, self.missing)

    @property
    def everyone(self) -> list[Stream]:
        """Those that run and those that have ended."""
        return [*self.running.values(), *self.ended]

    def infos(self) -> list[TcpInfo]:
        """What the kernel last said of those that run."""
        return [stream.info for stream in self.running.values() if stream.info is not None]

    def count(self) -> int:
        """Ask the kernel how many bytes of payload all have moved, and let those go that have nothing more to do."""
        total_bytes = sum(stream.refresh() for stream in self.running.values()) + self._ended_bytes
        for stream in [stream for stream in self.running.values() if stream.is_spent]:
            self.drop(stream)
        return total_bytes

    def open_due(self, *, has_begun: bool) -> float | None:
        """Open the next stream if one is missing and its time has come.

        Returns:
            Seconds until the next one's turn; absent when none is missing.

        Raises:
            NotRunError: see `open`.
        """
        if not self.missing:
            return None
        now_s = time.monotonic()
        if now_s >= self._next_open_s:
            self._next_open_s = now_s + STAGGER_S
            self.open(has_begun=has_begun)
        return STAGGER_S

    def open(self, *, has_begun: bool) -> None:
        """Open one stream; that it cannot be opened is a failed stream, unless the link was down from the start.

        Raises:
            NotRunError: it was, with `has_begun` still false; or TLS is demanded, and there is no file of authorities.
        """
        self._opened += 1
        self._successors_due = max(0, self._successors_due - 1)
        if self._opened > _OPENED_MAX:
            self._fail(MeasurementFailedError(Operation.TRANSFER, FailureKind.CLOSED, "the peer ends every stream"))
            return
        try:
            sock = self._open_socket()
        except NotRunError as error:
            if not has_begun and not self.running:
                raise
            self._fail(MeasurementFailedError(Operation.CONNECT, FailureKind.LINK_LOST, str(error)))
            return
        except MeasurementFailedError as error:
            self._fail(error)
            return
        stream = self._maker.make(sock)
        try:
            stream.share(self._allowance)
        except NotRunError:  # what is left does not suffice for one more
            stream.close()
            self.wanted -= 1
            return
        self._start(stream)

    def _start(self, stream: Stream) -> None:
        self.running[stream.sock.fileno()] = stream
        self._epoll.register(stream.sock.fileno(), stream.wanted)
        try:
            stream.connect()
        except MeasurementFailedError as error:
            self.drop(stream, error)

    def watch(self, stream: Stream) -> None:
        """Wait for what it wants in its new state."""
        self._epoll.modify(stream.sock.fileno(), stream.wanted)
        self._sort_out()

    def drop(self, stream: Stream, problem: MeasurementFailedError | None = None) -> None:
        """Close a stream that has ended, or failed with `problem`."""
        del self.running[stream.sock.fileno()]
        stream.refresh()
        stream.close()
        self.ended.append(stream)
        self._ended_bytes += stream.counted_bytes
        self._sort_out()
        self._spent += stream.is_spent
        if not stream.is_spent:
            self._give_back(stream.owed_bytes)
        if problem is None:
            self._successors_due += not stream.is_spent
            return
        self._fail(problem)
        if stream.counted_bytes and self._replaced < _REPLACED_MAX:
            self._replaced += 1

    def _give_back(self, owed_bytes: int) -> None:
        """Let others have what one took of a file and will not come; of a cap some of it may still be under way."""
        if self._allowance.is_hard or not owed_bytes:
            return
        self._allowance.give_back(owed_bytes)
        for stream in self.running.values():
            stream.go_on()
            self._epoll.modify(stream.sock.fileno(), stream.wanted)

    def _sort_out(self) -> None:
        self.flowing = [stream for stream in self.running.values() if stream.flows]

    def _fail(self, problem: MeasurementFailedError) -> None:
        self.failed += 1
        self.first_problem = self.first_problem or problem

    def close(self) -> None:
        """End them all."""
        for stream in self.running.values():
            stream.close()
        self._epoll.close()
        self._maker.close()
