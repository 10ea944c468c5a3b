"""A stream that downloads: GET, and the kernel drops the payload (`MSG_TRUNC`) without copying it to us.

That makes one core of a Raspberry Pi enough for a gigabit line.
"""

from __future__ import annotations

import re
import socket
from typing import Final

from probe.errors import MeasurementFailedError
from probe.flows.faults import failed
from probe.flows.http_head import ResponseHead, host_header, request_head
from probe.flows.stream import RECEIVE_BYTES_MAX, USER_AGENT, Order, Stream, StreamState
from probe.messages import FailureKind, Operation

_WHOLE: Final = 200
# Below this a body is a page, not a bulk object: its requests would be measured, not the line.
_BODY_BYTES_MIN: Final = 1 << 20
# SO_RCVLOWAT: wake for 2 ms worth of bytes, but never so many that the receive window stops to grow.
_WAKE_PERIOD_S: Final = 0.002
_WAKE_BYTES_MAX: Final = 256 * 1024
_WINDOW_SHARE: Final = 4


class DownloadStream(Stream):
    """GET, again and again, on one connection."""

    def __init__(self, sock: socket.socket, order: Order) -> None:
        super().__init__(sock, order)
        self._peer_congestion_control: str | None = None
        self._tuned: tuple[float, int] | None = None
        self._rest_bytes: int | None = None
        self._keeps_alive = True
        self._wake_bytes = 1

    @property
    def congestion_control(self) -> str | None:
        """The peer's algorithm, by its own word."""
        return self._peer_congestion_control

    def tune(self, now_s: float, *, ramp_is_over: bool) -> None:
        """Wake less often (SO_RCVLOWAT). Set too early or too high it would freeze the receive window."""
        before, self._tuned = self._tuned, (now_s, self.counted_bytes)
        if not ramp_is_over or before is None or self.info is None or self.state is not StreamState.MOVING:
            return
        rate_bytes_per_s = (self.counted_bytes - before[1]) / (now_s - before[0])
        space_bytes = self.info.receive_space_bytes or 0
        self._wake_at(min(int(rate_bytes_per_s * _WAKE_PERIOD_S), space_bytes // _WINDOW_SHARE, _WAKE_BYTES_MAX))

    def _wake_at(self, wanted_bytes: int) -> None:
        # Near the end of a body fewer bytes than that may be left, and nothing would ever wake us.
        near_end = self._rest_bytes is not None and self._rest_bytes < wanted_bytes + RECEIVE_BYTES_MAX
        wake_bytes = 1 if near_end else max(1, wanted_bytes)
        if wake_bytes != self._wake_bytes:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wake_bytes)
            self._wake_bytes = wake_bytes

    def _prepare(self) -> None:
        """Nothing: the kernel's own receive buffer tuning is best."""

    def _request(self) -> bytes:
        return request_head("GET", host_header(self.order.host, self.order.port), self.order.path, agent=USER_AGENT)

    def _accept_head(self, head: ResponseHead, rest_bytes: int) -> None:
        _check_body(head)
        self._peer_congestion_control = _word(head.headers.get("x-congestion-control"))
        self._head_bytes += head.wire_bytes
        self._keeps_alive = head.keeps_alive
        self._rest_bytes = None if head.content_bytes is None else head.content_bytes - rest_bytes
        self._enter(StreamState.MOVING)

    def _move(self, events: int, buffer: memoryview) -> None:
        del events  # reading says it all: data, the end, or the error
        wanted = len(buffer) if self._rest_bytes is None else min(len(buffer), self._rest_bytes)
        try:
            received_bytes = self.sock.recv_into(buffer, wanted, socket.MSG_TRUNC)
        except BlockingIOError:
            return
        except OSError as error:
            raise failed(Operation.TRANSFER, error) from error
        if received_bytes == 0:
            self._end_of_connection()
        elif self._rest_bytes is not None:
            self._rest_bytes -= received_bytes
            self._wake_at(self._wake_bytes)
            self._end_of_body()

    def _end_of_connection(self) -> None:
        if self._rest_bytes is not None:
            raise MeasurementFailedError(
                Operation.TRANSFER, FailureKind.CLOSED, f"the peer closed {self._rest_bytes} bytes too early"
            )
        self._enter(StreamState.ENDED)

    def _end_of_body(self) -> None:
        if self._rest_bytes == 0:
            if self._keeps_alive:
                self._begin_request()
            else:
                self._enter(StreamState.ENDED)


def _check_body(head: ResponseHead) -> None:
    """Refuse what is not the peer's bulk object: a captive portal's page, a compressed or chunked body."""
    if head.status != _WHOLE:
        raise MeasurementFailedError(Operation.REQUEST, FailureKind.HTTP_STATUS, f"the peer answered {head.status}")
    if head.headers.get("content-type", "").lower().startswith("text/html"):
        raise MeasurementFailedError(Operation.REQUEST, FailureKind.INTERCEPTED, "a web page came instead of the data")
    if "transfer-encoding" in head.headers or "content-encoding" in head.headers:
        raise MeasurementFailedError(
            Operation.REQUEST, FailureKind.MALFORMED, "the body is encoded: its size is unknown"
        )
    if head.content_bytes is not None and head.content_bytes < _BODY_BYTES_MIN:
        detail = f"a body of {head.content_bytes} bytes is too short to measure with"
        raise MeasurementFailedError(Operation.REQUEST, FailureKind.MALFORMED, detail)


def _word(text: str | None) -> str | None:
    """A header's value, if it is a plain word: anybody may have sent it."""
    return text if text is not None and re.fullmatch(r"[a-z0-9_]{1,15}", text) else None
