"""A stream that uploads: POST, the body sent by the kernel out of a memory file (`sendfile`).

Only a little waits in the socket (TCP_NOTSENT_LOWAT), and what counts is what the other side has acknowledged.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from typing import Final

from probe.errors import MeasurementFailedError
from probe.flows.faults import failed
from probe.flows.http_head import HEAD_BYTES_MAX, ResponseHead, host_header, request_head
from probe.flows.stream import USER_AGENT, Order, Stream, StreamState
from probe.messages import FailureKind, Operation

# Keep little unsent in the socket: what waits there is neither on the line nor can be taken back.
_NOTSENT_BYTES: Final = 128 * 1024
_TCP_NOTSENT_LOWAT: Final = 25  # linux/tcp.h; Python names it on some platforms only


class UploadStream(Stream):
    """POST, again and again, on one connection; `source` is a memory file of random bytes."""

    wanted_when_moving = select.EPOLLIN | select.EPOLLOUT

    def __init__(self, sock: socket.socket, order: Order, source: int, source_bytes: int) -> None:
        super().__init__(sock, order)
        self._source, self._source_bytes = source, source_bytes
        self._rest_bytes = 0
        self._answer: ResponseHead | None = None

    @property
    def congestion_control(self) -> str | None:
        """The algorithm that the kernel uses for this stream."""
        try:
            name = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
        except OSError:
            return None
        return name.rstrip(b"\0").decode("ascii")

    def _prepare(self) -> None:
        with contextlib.suppress(OSError):  # BBR would hide the line's buffers; without CUBIC the default is used
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        self.sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _NOTSENT_BYTES)

    def _request(self) -> bytes:
        host = host_header(self.order.host, self.order.port)
        head = request_head("POST", host, self.order.path, agent=USER_AGENT, content_bytes=self.order.post_bytes)
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
            more = self.sock.recv(HEAD_BYTES_MAX)  # the answer's body, of no interest
        except BlockingIOError:
            return
        except OSError as error:
            raise failed(Operation.TRANSFER, error) from error
        if not more:
            raise MeasurementFailedError(Operation.TRANSFER, FailureKind.CLOSED, "the peer closed during the upload")

    def _send(self) -> None:
        offset = (self.order.post_bytes - self._rest_bytes) % self._source_bytes
        count = min(self._source_bytes - offset, self._rest_bytes)
        try:
            self._rest_bytes -= os.sendfile(self.sock.fileno(), self._source, offset, count)
        except BlockingIOError:
            return
        except OSError as error:
            self._explain(Operation.TRANSFER, error)
        if self._rest_bytes == 0:
            if self._answer is None:
                self._enter(StreamState.WAITING)
            else:
                self._end_of_post()

    def _end_of_post(self) -> None:
        if self._answer is not None and self._answer.keeps_alive:
            self._begin_request()
        else:
            self._enter(StreamState.ENDED)
