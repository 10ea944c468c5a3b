"""One connection of the HTTP peer: a source of random bytes, and a sink.

Everybody may connect, so everything has an end: the head's size and time, the bytes and seconds of a connection, and
how long the other side may stand still. The kernel moves the bytes (`sendfile` out, `MSG_TRUNC` in).
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Final

import msgspec

from probe.errors import MeasurementFailedError
from probe.flows.bulk.wire import PlainWire, Wire
from probe.peer.http_request import RefusedRequestError, Request, find_request

_RECEIVE_BYTES: Final = 64 * 1024
SINK_BYTES: Final = 1 << 20
# How long the rest of a refused request is read, so that the refusal arrives before a reset.
_LINGER_S: Final = 1.0
# A probe's POST: with less than that left, the connection is not offered for another one.
_POST_BYTES: Final = 1 << 30
# And with less than that no part is worth asking for.
_PART_BYTES_MIN: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client, and all of them together, may take.

    The defaults let a probe measure 10 Gbit/s for its longest test (60 s at most) and a carrier's NAT hold several
    probes of 16 streams.
    """

    connections: int = 256
    connections_per_address: int = 64
    bytes_per_connection: int = 16 << 30
    seconds_per_connection: float = 90.0
    head_s: float = 5.0
    stall_s: float = 15.0


class _GoneError(Exception):
    """The client left, stood still for too long, or has had its share."""


class Connection:
    """Serves requests until either side has enough."""

    def __init__(
        self, sock: socket.socket, limits: Limits, version: str, source: tuple[int, int], wire: Wire | None = None
    ) -> None:
        self.sock = sock
        self.wire = wire or PlainWire(sock)
        self.sent_bytes = 0
        self.received_bytes = 0
        self._limits, self._version = limits, version
        self._source, self._source_bytes = source
        self._deadline_s = time.monotonic() + limits.seconds_per_connection
        self._received = b""
        self._poll = select.poll()

    def serve(self) -> None:
        """Answer until the connection ends; never raises."""
        self.sock.setblocking(False)  # noqa: FBT003 - the socket API takes it so
        try:
            self._secure()
            while self._serve_one():
                pass
            self._linger()
        except RefusedRequestError as refused:
            self._refuse(refused.status)
        except (OSError, _GoneError, MeasurementFailedError):
            return

    def _secure(self) -> None:
        deadline_s = time.monotonic() + self._limits.head_s
        while wanted := self.wire.secure():
            self._wait(wanted, deadline_s - time.monotonic())

    def _serve_one(self) -> bool:
        """One request; whether another may follow."""
        request = self._read_request()
        if request is None:
            return False
        if (request.method, request.path) == ("GET", "/download"):
            return self._download(request)
        if request.method in {"POST", "PUT"} and request.path == "/upload":
            return self._upload(request)
        if (request.method, request.path) == ("GET", "/info"):
            return self._info(request)
        if (request.method, request.path) == ("GET", "/small"):
            return self._small(request)
        raise RefusedRequestError(405 if request.path in {"/download", "/upload", "/info", "/small"} else 404)

    def _read_request(self) -> Request | None:
        """The next request's head; None when the client closed between two requests."""
        head_deadline_s = time.monotonic() + self._limits.head_s
        while (request := find_request(self._received)) is None:
            self._wait(select.POLLIN, head_deadline_s - time.monotonic())
            try:
                part = self.wire.receive(_RECEIVE_BYTES)
            except BlockingIOError:
                continue
            if not part:
                return None
            self._received += part
        self._received = self._received[request.wire_bytes :]
        return request

    def _download(self, request: Request) -> bool:
        """The whole share as one body, or a part of it (RFC 9110 section 14)."""
        extra = f"Content-Type: application/octet-stream\r\nX-Congestion-Control: {self._congestion_control()}\r\n"
        length_bytes, keeps_alive = self._rest_bytes(), False
        if request.part is None:
            self._send(_head(200, length_bytes, extra=extra, keeps_alive=False))
        else:
            first, last = request.part
            length_bytes = min(last - first + 1, length_bytes)
            keeps_alive = request.keeps_alive and self._rest_bytes() >= length_bytes + _PART_BYTES_MIN
            # The object has no length of its own: what is left of the share shrinks with every part.
            extra += f"Content-Range: bytes {first}-{first + length_bytes - 1}/*\r\n"
            self._send(_head(206, length_bytes, extra=extra, keeps_alive=keeps_alive))
        self._send_source(length_bytes)
        return keeps_alive

    def _send_source(self, length_bytes: int) -> None:
        rest_bytes = length_bytes
        while rest_bytes > 0:
            self._wait(select.POLLOUT, self._limits.stall_s)
            offset = (length_bytes - rest_bytes) % self._source_bytes
            count = min(self._source_bytes - offset, rest_bytes)
            try:
                sent_bytes = self.wire.send_source(self._source, offset, count)
            except BlockingIOError:
                continue
            self.sent_bytes += sent_bytes
            rest_bytes -= sent_bytes

    def _upload(self, request: Request) -> bool:
        if request.content_bytes is None:
            raise RefusedRequestError(411)
        if request.content_bytes > self._rest_bytes():
            raise RefusedRequestError(413)
        if request.expects_continue:
            self._send(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._swallow(request.content_bytes)
        keeps_alive = request.keeps_alive and self._rest_bytes() >= _POST_BYTES
        self._send(_head(204, None, keeps_alive=keeps_alive))
        return keeps_alive

    def _swallow(self, length_bytes: int) -> None:
        """Read a body without looking at it."""
        known = min(len(self._received), length_bytes)
        self._received = self._received[known:]
        self.received_bytes += known
        rest_bytes = length_bytes - known
        while rest_bytes > 0:
            self._wait(select.POLLIN, self._limits.stall_s)
            try:
                received_bytes = self.wire.discard(_SINK, min(SINK_BYTES, rest_bytes))
            except BlockingIOError:
                continue
            if received_bytes == 0:
                raise _GoneError
            self.received_bytes += received_bytes
            rest_bytes -= received_bytes

    def _info(self, request: Request) -> bool:
        body = msgspec.json.encode({"version": self._version, "limits": asdict(self._limits)})
        head = _head(200, len(body), extra="Content-Type: application/json\r\n", keeps_alive=request.keeps_alive)
        self._send(head + body)
        return request.keeps_alive

    def _small(self, request: Request) -> bool:
        """One byte: what a responsiveness probe asks for."""
        extra = "Content-Type: application/octet-stream\r\n"
        self._send(_head(200, 1, extra=extra, keeps_alive=request.keeps_alive) + b"1")
        return request.keeps_alive

    def _refuse(self, status: int) -> None:
        """Say why."""
        try:
            self._send(_head(status, 0, keeps_alive=False))
            self._linger()
        except (OSError, _GoneError, MeasurementFailedError):
            return

    def _linger(self) -> None:
        """Read on for a moment: closing with unread bytes would reset away what was sent (RFC 9112 section 9.6)."""
        self.sock.shutdown(socket.SHUT_WR)
        until_s = time.monotonic() + _LINGER_S
        self._wait(select.POLLIN, until_s - time.monotonic())
        while self.wire.discard(_SINK, SINK_BYTES):
            self._wait(select.POLLIN, until_s - time.monotonic())

    def _send(self, content: bytes) -> None:
        while content:
            self._wait(select.POLLOUT, self._limits.stall_s)
            with contextlib.suppress(BlockingIOError):
                content = content[self.wire.send(content) :]

    def _wait(self, event: int, time_out_s: float) -> None:
        """Wait for the socket, but not beyond the connection's own time."""
        rest_s = min(time_out_s, self._deadline_s - time.monotonic())
        self._poll.register(self.sock.fileno(), event)
        if rest_s <= 0 or not self._poll.poll(rest_s * 1000):
            raise _GoneError

    def _rest_bytes(self) -> int:
        return max(0, self._limits.bytes_per_connection - self.sent_bytes - self.received_bytes)

    def _congestion_control(self) -> str:
        name = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
        return name.rstrip(b"\0").decode("ascii")


# All threads share it: with MSG_TRUNC the kernel writes nothing here, and what TLS writes nobody reads.
_SINK: Final = memoryview(bytearray(SINK_BYTES))


def busy_head() -> bytes:
    """The answer to a connection over the limit (RFC 9110 section 15.6.4)."""
    return _head(HTTPStatus.SERVICE_UNAVAILABLE, 0, extra="Retry-After: 5\r\n", keeps_alive=False)


def _head(status: int, content_bytes: int | None, *, extra: str = "", keeps_alive: bool) -> bytes:
    length = "" if content_bytes is None else f"Content-Length: {content_bytes}\r\n"
    connection = "keep-alive" if keeps_alive else "close"
    reason = HTTPStatus(status).phrase
    lines = (
        f"HTTP/1.1 {int(status)} {reason}\r\n{length}{extra}Cache-Control: no-store\r\nConnection: {connection}\r\n\r\n"
    )
    return lines.encode("ascii")
