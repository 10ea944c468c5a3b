"""A stream that uploads: POST, the body sent by the kernel out of memory that it has already.

Only a little waits in the socket (TCP_NOTSENT_LOWAT), and what counts is what the other side has acknowledged.
"""

from __future__ import annotations

import contextlib
import math
import select
import socket
from typing import Final

from probe.errors import MeasurementFailedError
from probe.flows.bulk.allowance import Allowance
from probe.flows.bulk.http_head import HEAD_BYTES_MAX, ResponseHead, request_head
from probe.flows.bulk.stream import USER_AGENT, Order, Stream, StreamState
from probe.flows.bulk.upload_source import Body, UploadSource
from probe.flows.bulk.wire import PlainWire, Wire
from probe.flows.faults import failed
from probe.messages import FailureKind, Operation

# Keep little unsent in the socket: what waits there is neither on the line nor can be taken back.
_NOTSENT_BYTES: Final = 128 * 1024
# But enough for the time until the next look at the socket, several times over.
_NOTSENT_S: Final = 0.1
_NOTSENT_BYTES_MAX: Final = 4 << 20
# More than the kernel gives room for (4 MiB); where the line takes it as fast as it comes, others wait for their turn.
_FILLS_PER_LOOK: Final = 8
_TCP_NOTSENT_LOWAT: Final = 25  # linux/tcp.h; Python names it on some platforms only


class UploadStream(Stream):
    """POST, again and again, on one connection."""

    wanted_when_moving = select.EPOLLIN | select.EPOLLOUT
    wanted_when_flowing = select.EPOLLIN

    def __init__(self, sock: socket.socket, order: Order, source: UploadSource, wire: Wire | None = None) -> None:
        super().__init__(sock, order, wire)
        self._source = source
        self._body: Body | None = None  # where it flows, and without a limit
        self._rest_bytes = 0
        self._answer: ResponseHead | None = None
        self._granted_bytes = self._handed_bytes = 0  # of the allowance: to be handed to the socket, and handed to it

    def share(self, allowance: Allowance) -> None:
        """Take from `allowance` together with other streams; called before it connects."""
        super().share(allowance)
        if allowance.is_limited:
            self._limit_unsent(min(allowance.part_bytes, _NOTSENT_BYTES))
        # Made now: what it costs must not be in the time that is measured.
        if self._is_plain and not allowance.is_limited:
            self._body = self._source.body()
        else:
            self._source.file()

    def tune(self, now_s: float) -> None:
        """Let more wait in the socket of a fast stream."""
        bytes_per_s = self._latest_bytes_per_s(now_s)
        if not bytes_per_s:  # it has only begun: what it needs cannot be told yet
            self.lasts_s = math.inf
            return
        limit_bytes = min(int(bytes_per_s * _NOTSENT_S), _NOTSENT_BYTES_MAX)
        if limit_bytes > self._unsent_bytes_max:
            self._limit_unsent(limit_bytes)
        # Where it flows, this comes right after it was filled up, elsewhere at the end of a pause. The kernel may hold
        # less than it is allowed to: on a line with a shallow buffer it does.
        unsent_bytes = None if self.info is None else self.info.not_sent_bytes
        if unsent_bytes is None:  # Linux before 4.6; it asks for more when half is gone
            unsent_bytes = self._unsent_bytes_max // 2
        if not self._fills_up:  # then one look brings no more than a part, or the source once
            unsent_bytes = min(unsent_bytes, self._source.length_bytes, self.allowance.part_bytes)
        self.lasts_s = unsent_bytes / bytes_per_s

    def refresh(self) -> int:
        """Ask the kernel how many bytes of payload have been delivered; spent when there will be no more."""
        counted_bytes = super().refresh()
        nothing_left = self.allowance.is_empty and not self._granted_bytes and self.state is StreamState.MOVING
        if nothing_left and self.info is not None and not self.info.unacked_segments and not self.info.not_sent_bytes:
            self.is_spent = True
        return counted_bytes

    @property
    def owed_bytes(self) -> int:
        """What is granted, and what nobody has acknowledged."""
        return self._granted_bytes + max(0, self._handed_bytes - self.counted_bytes)

    @property
    def congestion_control(self) -> str | None:
        """The algorithm that the kernel uses for this stream."""
        try:
            name = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
        except OSError:
            return None
        return name.rstrip(b"\0").decode("ascii")

    def close(self) -> None:
        """Reset the connection: neither side goes on sending."""
        super().close()
        body, self._body = self._body, None
        if body is not None:
            body.close()

    def _prepare(self) -> None:
        with contextlib.suppress(OSError):  # BBR would hide the line's buffers; without CUBIC the default is used
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        self._limit_unsent(_NOTSENT_BYTES)

    def _limit_unsent(self, limit_bytes: int) -> None:
        self._unsent_bytes_max = limit_bytes
        self.sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, limit_bytes)

    def _request(self) -> bytes:
        length_bytes = self.order.post_bytes
        head = request_head("POST", self.host_header, self.order.path, agent=USER_AGENT, content_bytes=length_bytes)
        self._head_bytes += len(head)
        self._rest_bytes, self._answer = self.order.post_bytes, None
        return head

    def _asked(self) -> None:
        self._enter(StreamState.MOVING)

    def _accept_head(self, head: ResponseHead, rest_bytes: int) -> None:
        """Go on sending: nginx answers before it has read the body."""
        del rest_bytes
        self._answer = head
        if self.state is StreamState.WAITING:
            self._end_of_post()

    @property
    def flows(self) -> bool:
        """Random bytes, as they are."""
        return self._is_plain and self.state is StreamState.MOVING

    @property
    def _is_plain(self) -> bool:
        return self.is_bare and isinstance(self.wire, PlainWire)

    @property
    def _fills_up(self) -> bool:
        """Whether one look fills the socket up, however much has gone since the last one, but at the end of a POST."""
        return self.flows and not self.allowance.is_limited

    def flow(self, buffer: memoryview) -> None:
        """Let the kernel send what finds room."""
        del buffer
        if self._body is None:
            self._send()
            return
        for _ in range(_FILLS_PER_LOOK):
            try:
                count = min(self._body.fill(), self._rest_bytes)
                sent_bytes = self._body.send(self.sock.fileno(), count)
            except BlockingIOError:
                return
            except OSError as error:
                self._explain(Operation.TRANSFER, error)
            self._rest_bytes -= sent_bytes
            if not self._rest_bytes:
                self._end_of_body()
            if sent_bytes < count or self.state is not StreamState.MOVING:
                return

    def _move(self, events: int, buffer: memoryview) -> None:
        del buffer
        if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            self._listen()
        if events & select.EPOLLOUT and self.state is StreamState.MOVING:
            self._send()

    def _listen(self) -> None:
        if self._answer is None:
            self._read_head()
            return
        try:
            more = self.wire.receive(HEAD_BYTES_MAX)  # the answer's body, of no interest
        except BlockingIOError:
            return
        except OSError as error:
            raise failed(Operation.TRANSFER, error) from error
        if not more:
            raise MeasurementFailedError(Operation.TRANSFER, FailureKind.CLOSED, "the peer closed during the upload")

    def _send(self) -> None:
        offset = (self.order.post_bytes - self._rest_bytes) % self._source.length_bytes
        count = min(self._source.length_bytes - offset, self._rest_bytes)
        if not self._granted_bytes:
            self._granted_bytes = self.allowance.take(self.allowance.part_bytes)
        if not self._granted_bytes:  # nothing more to send, ever: only listen
            # The last bytes must not wait for an acknowledgement (Nagle), which may be delayed by 40 ms.
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.wanted_when_moving = select.EPOLLIN
            return
        try:
            sent_bytes = self.wire.send_source(self._source.file(), offset, min(count, self._granted_bytes))
        except BlockingIOError:
            return
        except OSError as error:
            self._explain(Operation.TRANSFER, error)
        self._rest_bytes -= sent_bytes
        self._hand_over(sent_bytes)
        if not self._rest_bytes:
            self._end_of_body()

    def _hand_over(self, payload_bytes: int) -> None:
        self._granted_bytes -= payload_bytes
        self._handed_bytes += payload_bytes

    def _end_of_body(self) -> None:
        if self._answer is None:
            self._enter(StreamState.WAITING)
        else:
            self._end_of_post()

    def _end_of_post(self) -> None:
        if self._answer is not None and self._answer.keeps_alive:
            self._begin_request()
        else:
            self._enter(StreamState.ENDED)
