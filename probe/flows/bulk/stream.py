"""One TCP stream of a bulk transfer, what both directions share: connect, ask, wait for the answer.

The bytes are counted by the kernel (TCP_INFO), not here: what was handed to a socket is not what was delivered.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
import struct
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Literal

from probe.errors import MeasurementFailedError, NotRunError
from probe.flows.bulk.allowance import Allowance
from probe.flows.bulk.arrivals import WaitingHere, waiting_at_receiver_bytes
from probe.flows.bulk.http_head import HEAD_BYTES_MAX, ResponseHead, check_status, find_head, host_header
from probe.flows.bulk.wire import ANOTHER_CONNECTION, PlainWire, TlsTerms, Wire
from probe.flows.faults import failed
from probe.flows.tcp_info import TcpInfo, read_tcp_info
from probe.messages import BulkProtocol, FailureKind, NotRunReason, Operation

Direction = Literal["download", "upload"]

# SYNs are repeated after 1 and 3 s (RFC 6298): two lost ones are still a connection.
CONNECT_TIME_OUT_S: Final = 5.0
REQUEST_TIME_OUT_S: Final = 5.0
STALL_TIME_OUT_S: Final = 3.0
# More than comes between two looks at 2.5 Gbit/s. Only what is decrypted is ever written there, a record at a time.
RECEIVE_BYTES_MAX: Final = 8 << 20
USER_AGENT: Final = "fleet-probe"
# Where decrypting is slower than the line there is always more, and others wait for their turn.
_PASSES_MAX: Final = 8
_LINGER_RESET: Final = struct.pack("ii", 1, 0)  # close with RST: what is still queued must not cost the line


@dataclass(frozen=True, slots=True)
class Order:
    """What to transfer, from or to whom, and when to end.

    `host` goes into the Host header; `address` is where to connect. An upload is sent as POSTs of `post_bytes` each.
    `max_bytes` of payload may be caused at most; `file_bytes` are transferred to the last one, whatever is known then.
    `protocol` is what the peer speaks, `tls` what is demanded of it where that is inside TLS.
    `is_load`: somebody measures the delay under it, so what waits at the bottleneck must stay there.
    `until_told`: go on when the figure has settled, until somebody says enough or a limit is reached.
    The time-outs are for one stream's connection, for its answer, and for all streams together without a byte.
    """

    direction: Direction
    address: str
    port: int
    host: str
    path: str
    max_duration_s: float
    max_bytes: int | None
    streams_max: int
    post_bytes: int = 1 << 30
    file_bytes: int | None = None
    is_load: bool = False
    until_told: bool = False
    protocol: BulkProtocol = "http"
    tls: TlsTerms | None = None
    connect_time_out_s: float = CONNECT_TIME_OUT_S
    request_time_out_s: float = REQUEST_TIME_OUT_S
    stall_time_out_s: float = STALL_TIME_OUT_S


class StreamState(Enum):
    """Where a stream stands."""

    CONNECTING = auto()
    SECURING = auto()  # the TLS handshake
    ASKING = auto()
    WAITING = auto()  # for the response's head
    MOVING = auto()
    ENDED = auto()


# Compared one by one: to look a state up in a set would hash it, in Python, at every turn.
_SENDING_REQUEST: Final = (StreamState.CONNECTING, StreamState.ASKING)
_UNANSWERED: Final = (StreamState.ASKING, StreamState.WAITING)
_ANSWERED: Final = (StreamState.WAITING, StreamState.MOVING)
_ASKED: Final = (StreamState.ASKING, StreamState.WAITING, StreamState.MOVING)


class Stream(ABC):
    """What both directions share."""

    wanted_when_moving = select.EPOLLIN
    # What is not seen by passing bytes on; that the connection was reset is always told.
    wanted_when_flowing = 0
    # Whether the payload is bare bytes on the connection, with nothing of the dialect's own in between.
    is_bare = True

    def __init__(self, sock: socket.socket, order: Order, wire: Wire | None = None) -> None:
        self.sock = sock
        self.wire = wire or PlainWire(sock)
        self._securing_wanted = 0
        self.order = order
        self.state = StreamState.CONNECTING
        self.info: TcpInfo | None = None
        self.counted_bytes = 0
        self._since_s = time.monotonic()
        self._moves_since_s: float | None = None
        self._to_send = b""
        self._received = b""
        self._surplus_bytes = 0  # of what came with a head: beyond its body, the next answer's beginning
        self._head_bytes = 0
        self._waiting_here = WaitingHere()
        self._counted_before = (self._since_s, 0)
        self.allowance = Allowance(None)
        self.lasts_s = math.inf  # how long it can be left alone before it has nothing to do
        self.is_spent = False  # it has nothing more to do, because the allowance is used up
        self._prepare()

    def share(self, allowance: Allowance) -> None:
        """Take from `allowance` together with other streams; called before it connects."""
        self.allowance = allowance

    def connect(self) -> None:
        """Begin to connect.

        Raises:
            MeasurementFailedError: (connect, ...) the kernel already knows that it cannot.
        """
        try:
            self.sock.connect((self.order.address, self.order.port))
        except BlockingIOError:
            return
        except OSError as error:
            raise failed(Operation.CONNECT, error) from error

    @property
    def wanted(self) -> int:
        """The epoll events to wait for."""
        if self.state in _SENDING_REQUEST:
            return select.EPOLLOUT
        if self.state is StreamState.SECURING:
            return self._securing_wanted
        if self.state is not StreamState.MOVING:
            return select.EPOLLIN
        return self.wanted_when_flowing if self.flows else self.wanted_when_moving

    @property
    def _operation(self) -> Operation:
        """What is going on: an upload moves its body before it has an answer."""
        return Operation.TRANSFER if self.state is StreamState.MOVING else Operation.REQUEST

    @property
    def host_header(self) -> str:
        """Who is asked, as a request says it."""
        return host_header(self.order.host, self.order.port, tls=self.order.tls is not None)

    @property
    def has_asked(self) -> bool:
        """Whether the request is on its way, or further."""
        return self.state in _ASKED

    def serve(self, events: int, buffer: memoryview) -> None:
        """Do what can be done now.

        Raises:
            MeasurementFailedError: this stream is over.
        """
        self._serve_once(events, buffer)
        for _ in range(_PASSES_MAX):
            pending_bytes = self._pending_bytes  # nothing would wake us for these
            if not pending_bytes or self.state not in _ANSWERED:
                return
            self._serve_once(select.EPOLLIN, buffer)
            if self._pending_bytes == pending_bytes:
                return

    @property
    def _pending_bytes(self) -> int:
        return self.wire.pending_bytes

    def _serve_once(self, events: int, buffer: memoryview) -> None:
        if self.state is StreamState.MOVING:
            self._move(events, buffer)
            return
        if self.state is StreamState.CONNECTING:
            self._finish_connect()
        if self.state is StreamState.SECURING:
            self._secure()
        if self.state is StreamState.ASKING:
            self._ask()
        elif self.state is StreamState.WAITING:
            self._read_head()

    @property
    def flows(self) -> bool:
        """Whether it does nothing but pass bytes on: then `flow` is called from time to time, and epoll left out."""
        return False

    @abstractmethod
    def flow(self, buffer: memoryview) -> None:
        """Pass on what there is, without having been told that there is any.

        It is called hundreds of times a second, each time with cold caches: every call within it shows in what a
        test costs the CPU.

        Raises:
            MeasurementFailedError: this stream is over.
        """

    def check_time(self, now_s: float) -> None:
        """Give up on a connection or an answer that does not come.

        Raises:
            MeasurementFailedError: (connect | tls | request, timed_out).
        """
        if self.state is StreamState.MOVING:
            return
        waited_s = now_s - self._since_s
        place = f"{self.order.address}:{self.order.port}"
        if self.state is StreamState.CONNECTING and waited_s > self.order.connect_time_out_s:
            detail = f"{place} did not accept within {waited_s:.1f} s"
            raise MeasurementFailedError(Operation.CONNECT, FailureKind.TIMED_OUT, detail)
        tls = self.order.tls
        if self.state is StreamState.SECURING and tls is not None and waited_s > tls.handshake_time_out_s:
            detail = f"{place} did not finish the handshake within {waited_s:.1f} s"
            raise MeasurementFailedError(Operation.TLS, FailureKind.TIMED_OUT, detail)
        if self.state in _UNANSWERED and waited_s > self.order.request_time_out_s:
            detail = f"{place} did not answer within {waited_s:.1f} s"
            raise MeasurementFailedError(Operation.REQUEST, FailureKind.TIMED_OUT, detail)

    def moves_for_s(self, now_s: float) -> float:
        """For how long its payload has been moving, the heads between parts of it included; 0 before the first byte."""
        return 0.0 if self._moves_since_s is None else now_s - self._moves_since_s

    def refresh(self) -> int:
        """Ask the kernel how many bytes of payload this stream has moved, those that wait for a lost one included."""
        try:
            info = self.info = read_tcp_info(self.sock)
        except OSError:  # a socket that was reset keeps its last count
            return self.counted_bytes
        counted_bytes = self._carried_bytes(info) - self._head_bytes
        self.counted_bytes = max(self.counted_bytes, counted_bytes)
        return self.counted_bytes

    @abstractmethod
    def tune(self, now_s: float) -> None:
        """Adapt to the stream's rate; called with every sample, five times a second once no streams will be added."""

    def _latest_bytes_per_s(self, now_s: float) -> float | None:
        """The rate since this was asked the last time; absent when no time has passed."""
        (before_s, before_bytes), self._counted_before = self._counted_before, (now_s, self.counted_bytes)
        return (self.counted_bytes - before_bytes) / (now_s - before_s) if now_s > before_s else None

    @property
    @abstractmethod
    def owed_bytes(self) -> int:
        """What it took of the allowance that has not come yet, as of the last count."""

    def go_on(self) -> None:
        """Hear that there is something to take again."""
        self.wanted_when_moving = type(self).wanted_when_moving

    @property
    def round_trip_s(self) -> float | None:
        """The kernel's estimate of this stream's round trip as it is now, in seconds; absent before the first."""
        if self.info is None:
            return None
        return self.info.receive_rtt_s if self.order.direction == "download" else self.info.rtt_s

    @property
    def congestion_control(self) -> str | None:
        """The algorithm of the side that sends, where it is known."""
        return None

    def close(self) -> None:
        """Reset the connection: neither side goes on sending."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        self.wire.close()
        self.sock.close()

    @abstractmethod
    def _prepare(self) -> None:
        """Set the socket up before it connects."""

    @abstractmethod
    def _request(self) -> bytes:
        """The head of the request."""

    @abstractmethod
    def _move(self, events: int, buffer: memoryview) -> None:
        """Receive or send what there is."""

    @abstractmethod
    def _accept_head(self, head: ResponseHead, rest_bytes: int) -> None:
        """Judge the response's head; `rest_bytes` of the body came with it."""

    def _carried_bytes(self, info: TcpInfo) -> int:
        if self.order.direction == "download":
            return self.wire.received_bytes(info) + self._waiting_here.count(info)
        return self.wire.acked_bytes(info) + waiting_at_receiver_bytes(info)

    def _finish_connect(self) -> None:
        number = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise failed(Operation.CONNECT, OSError(number, os.strerror(number)))
        self.refresh()
        if self.info is None or self.info.acked_bytes is None:
            raise NotRunError(NotRunReason.TOOL_MISSING, "this kernel's TCP_INFO counts no bytes: Linux 4.1 is needed")
        self._enter(StreamState.SECURING)

    def _secure(self) -> None:
        self._securing_wanted = self.wire.secure()
        if self._securing_wanted == ANOTHER_CONNECTION:
            self._enter(StreamState.ENDED)
        elif not self._securing_wanted:
            self._begin_request()

    def _begin_request(self) -> None:
        self._to_send = self._request()
        self._enter(StreamState.ASKING)

    def _enter(self, state: StreamState) -> None:
        self.state, self._since_s = state, time.monotonic()
        if state is StreamState.MOVING and self._moves_since_s is None:
            self._moves_since_s = self._since_s

    def _ask(self) -> None:
        try:
            self._to_send = self._to_send[self.wire.send(self._to_send) :]
        except BlockingIOError:
            return
        except OSError as error:
            self._explain(Operation.REQUEST, error)
        if not self._to_send:
            self._asked()

    def _asked(self) -> None:
        self._enter(StreamState.WAITING)

    def _read_head(self) -> None:
        """Read what has come of the response's head; interim ones (1xx) are passed over."""
        try:
            part = self.wire.receive(HEAD_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError as error:
            raise failed(self._operation, error) from error
        if not part:
            raise MeasurementFailedError(self._operation, FailureKind.CLOSED, "the peer closed instead of answering")
        self._received += part
        while (head := find_head(self._received)) is not None:
            self._received = self._received[head.wire_bytes :]
            if self._is_answer(head):
                self._surplus_bytes = 0
                self._accept_head(head, len(self._received))
                self._received = self._received[len(self._received) - self._surplus_bytes :]
                if self.state is not StreamState.WAITING:
                    return

    def _is_answer(self, head: ResponseHead) -> bool:
        """Whether this head is the one that was waited for.

        Raises:
            MeasurementFailedError: (request, ...) it is, and says no.
        """
        if head.is_interim:
            return False
        check_status(head)
        return True

    def _explain(self, operation: Operation, error: OSError) -> None:
        """A server that refuses says why before it resets: its word tells more than the error."""
        with contextlib.suppress(OSError):
            part = self.wire.receive(HEAD_BYTES_MAX)
            head = find_head(self._received + part) if part else None
            if head is not None:
                check_status(head)
        raise failed(operation, error) from error
