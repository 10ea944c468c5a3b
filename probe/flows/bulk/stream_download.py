"""A stream that downloads: GET, and the kernel drops the payload (`MSG_TRUNC`) without copying it to us.

That makes one core of a Raspberry Pi enough for a gigabit line.
"""

from __future__ import annotations

import math
import re
import select
import socket
from collections import deque
from typing import Final

from probe.errors import MeasurementFailedError, NotRunError
from probe.flows.bulk.allowance import PART_BYTES_MIN, Allowance
from probe.flows.bulk.http_head import ResponseHead, request_head
from probe.flows.bulk.stream import RECEIVE_BYTES_MAX, USER_AGENT, Order, Stream, StreamState
from probe.flows.bulk.wire import PlainWire, Wire
from probe.flows.faults import failed
from probe.flows.tcp_info import TcpInfo
from probe.messages import FailureKind, NotRunReason, Operation

_WHOLE: Final = 200
_PART: Final = 206
# Below this a body is a page, not a bulk object: its requests would be measured, not the line.
_BODY_BYTES_MIN: Final = 1 << 20
# While a download flows, so much may wait: more than comes in the longest time between two looks, and at first half of
# the smallest window.
_UNREAD_S: Final = 0.1
_UNREAD_BYTES_MIN: Final = 32 * 1024
# What costs CPU by the byte (decrypting, following frames) is taken in portions, so that no stream holds the others up.
_LOOK_BYTES_MAX: Final = 1 << 20
_STEPS_MAX: Final = 8
_ANSWERED: Final = (StreamState.WAITING, StreamState.MOVING)


class DownloadStream(Stream):
    """GET, again and again, on one connection; with a limit, GETs of parts that never exceed it together."""

    def __init__(self, sock: socket.socket, order: Order, wire: Wire | None = None) -> None:
        super().__init__(sock, order, wire)
        self._peer_congestion_control: str | None = None
        self._parts: deque[int] = deque()  # asked for, their heads not read yet
        self._parts_bytes = self._last_head_bytes = 0
        self._rest_bytes: int | None = None
        self._keeps_alive = True
        self._is_plain = self.is_bare and isinstance(self.wire, PlainWire)
        self._look_bytes = RECEIVE_BYTES_MAX if self._is_plain else _LOOK_BYTES_MAX
        self._unread_bytes_max, self._unread_bytes = 1, _UNREAD_BYTES_MIN

    @property
    def congestion_control(self) -> str | None:
        """The peer's algorithm, by its own word."""
        return self._peer_congestion_control

    @property
    def owed_bytes(self) -> int:
        """The parts that were asked for, less what was read of them; what comes unasked is taken as it is read."""
        if self.allowance.by_window or not self.allowance.is_limited:
            return 0
        return sum(self._parts) + (self._rest_bytes or 0)

    def share(self, allowance: Allowance) -> None:
        """Take from `allowance` together with other streams; called before it connects."""
        super().share(allowance)
        if allowance.by_window:
            self._open_window()

    def tune(self, now_s: float) -> None:
        """See how much more than a round trip's worth the receive window holds: so long what comes can be left there.

        What is left lengthens the round trip of the window. While that is narrow it must be taken at once, or the
        kernel would not widen it.
        """
        bytes_per_s = self._latest_bytes_per_s(now_s)
        if not bytes_per_s:  # nothing came: whenever it is looked at is soon enough
            self.lasts_s = math.inf
            return
        # Half of the buffer is the kernel's own, as far as it promises.
        window_bytes = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
        one_look_bytes = min(window_bytes, self._look_bytes)
        self.lasts_s = max(0.0, one_look_bytes / bytes_per_s - (self.round_trip_s or 0.0))
        if self.flows:
            self._unread_bytes = max(_UNREAD_BYTES_MIN, min(int(bytes_per_s * _UNREAD_S), window_bytes))
            self._leave_unread(self._unread_bytes)

    def _leave_unread(self, most_bytes: int) -> None:
        """Tell the kernel that so much may wait here (`SO_RCVLOWAT`): until then it confirms what comes at once.

        Otherwise it puts the acknowledgement off until somebody reads, for the window would be seen to shrink
        (`__tcp_ack_snd_check` of Linux). Then the peer would send at our pace, in bursts as long as our pauses, which a
        line with a small buffer drops: through 8 ms of buffer about half of the rate was left (`docs/decisions.md`).
        """
        if self._unread_bytes_max * 3 // 4 < most_bytes <= self._unread_bytes_max:
            return
        self._unread_bytes_max = most_bytes
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, most_bytes)

    def _enter(self, state: StreamState) -> None:
        super()._enter(state)
        if self.flows:
            self._leave_unread(self._unread_bytes)
        elif self._unread_bytes_max > 1:  # epoll must tell of the first byte again
            self._leave_unread(1)

    def _carried_bytes(self, info: TcpInfo) -> int:
        """Without the heads that nobody has read yet; before the first was read, nothing else is known to have come."""
        if self.state is StreamState.WAITING and not self._head_bytes:
            return 0
        carried_bytes = super()._carried_bytes(info)
        return carried_bytes - self._unread_heads_bytes(carried_bytes) if self._parts else carried_bytes

    def _unread_heads_bytes(self, carried_bytes: int) -> int:
        """The heads of parts that came beyond those whose head was read, each taken to be as long as the last one."""
        beyond_bytes, heads_bytes = carried_bytes - self._head_bytes - self._parts_bytes, 0
        for part_bytes in self._parts:
            if beyond_bytes <= 0:
                break
            heads_bytes += min(beyond_bytes, self._last_head_bytes)
            beyond_bytes -= self._last_head_bytes + part_bytes
        return heads_bytes

    def _prepare(self) -> None:
        """Nothing: the kernel's own receive buffer tuning is best."""

    def _request(self) -> bytes:
        if self.allowance.is_limited and not self.allowance.by_window:
            return self._requests_of_parts()
        return request_head("GET", self.host_header, self.order.path, agent=USER_AGENT)

    def _requests_of_parts(self) -> bytes:
        """Ask for several parts ahead of time: the peer goes from one to the next without waiting for us."""
        heads = []
        while len(self._parts) < self.allowance.parts_ahead and (part_bytes := self.allowance.take_part()):
            self._parts.append(part_bytes)
            head = request_head("GET", self.host_header, self.order.path, agent=USER_AGENT, part_bytes=part_bytes)
            heads.append(head)
        return b"".join(heads)

    def _begin_request(self) -> None:
        super()._begin_request()
        if not self._to_send:  # others have used up what there was
            self._end()

    def _accept_head(self, head: ResponseHead, rest_bytes: int) -> None:
        if self._parts and head.status == _PART:
            self._accept_part(head, self._parts.popleft())
        else:
            _check_body(head)
            self._accept_whole(rest_bytes)
        self._peer_congestion_control = _word(head.headers.get("x-congestion-control"))
        self._head_bytes += head.wire_bytes
        self._last_head_bytes = head.wire_bytes
        self._keeps_alive = head.keeps_alive
        self._enter(StreamState.MOVING)
        if head.content_bytes is None:
            self._rest_bytes = None
            return
        # The last part may be so short that it came with its head.
        self._rest_bytes = max(0, head.content_bytes - rest_bytes)
        self._surplus_bytes = max(0, rest_bytes - head.content_bytes)
        self._end_of_body()

    def _accept_part(self, head: ResponseHead, part_bytes: int) -> None:
        """A part is as long as was asked for, or the object is shorter."""
        check_kind(head)
        if head.content_bytes is None or not min(PART_BYTES_MIN, part_bytes) <= head.content_bytes <= part_bytes:
            detail = f"a part of {head.content_bytes} bytes where {part_bytes} were asked for"
            raise MeasurementFailedError(Operation.REQUEST, FailureKind.MALFORMED, detail)
        self.allowance.give_back(part_bytes - head.content_bytes)
        self._parts_bytes += head.content_bytes

    def _accept_whole(self, rest_bytes: int) -> None:
        """The peer serves no parts: what may come is what the receive window lets in."""
        if not self.allowance.is_limited:
            return
        self._forget_parts()
        if not self.allowance.by_window:
            self.allowance.by_window = True
            self._open_window()
        self.allowance.take(rest_bytes)

    def _open_window(self) -> None:
        """Keep the window narrow, and take from the allowance what it lets in unasked.

        Raises:
            NotRunError: (budget) the limit is smaller than a receive window.
        """
        if not self.allowance.is_hard:
            return
        before_bytes = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        # The kernel doubles the figure, for its own overhead: no window is wider than that.
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.allowance.window_bytes // 2)
        after_bytes = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        window_bytes = after_bytes if self.state is StreamState.CONNECTING else max(before_bytes, after_bytes)
        if self.allowance.take(window_bytes) < window_bytes:
            detail = f"the peer serves no parts, and the limit is below a receive window of {window_bytes} bytes"
            raise NotRunError(NotRunReason.BUDGET, detail)

    @property
    def flows(self) -> bool:
        """Whenever the payload comes."""
        return self.state is StreamState.MOVING

    def flow(self, buffer: memoryview) -> None:
        """Let the kernel drop what has come: straight on where there is nothing but payload, else step by step."""
        rest_bytes = self._rest_bytes
        is_endless = rest_bytes is None or rest_bytes >= RECEIVE_BYTES_MAX
        if not is_endless or not self._is_plain or self.allowance.by_window:
            self._flow_by_steps(buffer)
            return
        try:
            received_bytes = self.sock.recv_into(buffer, RECEIVE_BYTES_MAX, socket.MSG_TRUNC)
        except BlockingIOError:
            return
        except OSError as error:
            raise failed(Operation.TRANSFER, error) from error
        if not received_bytes:
            self._end_of_connection()
        elif rest_bytes is not None:
            self._rest_bytes = rest_bytes - received_bytes
            if rest_bytes == received_bytes:
                self._end_of_body()

    def _flow_by_steps(self, buffer: memoryview) -> None:
        """Go on from a part's end to the next one's head and its beginning, which may all be there.

        A step within one part ends it: that step took all there was, or as much as one stream may have in one go. Where
        decrypting is slower than the line there is always more.
        """
        for _ in range(_STEPS_MAX):
            before = self.state
            self.serve(select.EPOLLIN, buffer)
            if self.state not in _ANSWERED or (before is self.state):
                return

    def _move(self, events: int, buffer: memoryview) -> None:
        del events  # reading says it all: data, the end, or the error
        wanted_bytes = self._look_bytes if self._rest_bytes is None else min(self._look_bytes, self._rest_bytes)
        if self.allowance.by_window:
            self._move_by_window(buffer, wanted_bytes)
        else:
            self._discard(buffer, wanted_bytes)

    def _move_by_window(self, buffer: memoryview, wanted_bytes: int) -> None:
        """Whatever is taken off the socket lets as much in."""
        granted_bytes = self.allowance.take(wanted_bytes)
        if not granted_bytes:
            self._end()
            return
        try:
            received_bytes = self._discard(buffer, granted_bytes)
        except MeasurementFailedError:
            if self._is_plain:  # nothing was taken then; who decrypts or follows frames may have taken some before it
                self.allowance.give_back(granted_bytes)
            raise
        self.allowance.give_back(granted_bytes - received_bytes)

    def _discard(self, buffer: memoryview, wanted_bytes: int) -> int:
        try:
            received_bytes = self.wire.discard(buffer, wanted_bytes)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise failed(Operation.TRANSFER, error) from error
        if received_bytes == 0:
            self._end_of_connection()
        elif self._rest_bytes is not None:
            self._rest_bytes -= received_bytes
            self._end_of_body()
        return received_bytes

    def _end_of_connection(self) -> None:
        if self._rest_bytes is not None:
            raise MeasurementFailedError(
                Operation.TRANSFER, FailureKind.CLOSED, f"the peer closed {self._rest_bytes} bytes too early"
            )
        self._end()

    def _end_of_body(self) -> None:
        if self._rest_bytes != 0:
            return
        if not self._keeps_alive:
            self._end()
        elif self._parts:
            self._ask_ahead()
            self._enter(StreamState.WAITING)
        else:
            self._begin_request()

    def _ask_ahead(self) -> None:
        """Ask for the next part while others are on their way; what does not fit now is sent the next time."""
        self._to_send += self._requests_of_parts()
        if not self._to_send:
            return
        try:
            self._to_send = self._to_send[self.wire.send(self._to_send) :]
        except BlockingIOError:
            return
        except OSError:  # reading will tell why; the peer may have ended properly, with bytes yet to be read
            self._to_send = b""

    def _end(self) -> None:
        self._forget_parts()
        self.is_spent = self.allowance.is_empty
        self._enter(StreamState.ENDED)

    def _forget_parts(self) -> None:
        """They will not come: the peer has ended the connection properly, or serves no parts."""
        self.allowance.give_back(sum(self._parts))
        self._parts.clear()


def _check_body(head: ResponseHead) -> None:
    """Refuse what is not the whole of the peer's bulk object."""
    if head.status != _WHOLE:
        raise MeasurementFailedError(Operation.REQUEST, FailureKind.HTTP_STATUS, f"the peer answered {head.status}")
    check_kind(head)
    if head.content_bytes is not None and head.content_bytes < _BODY_BYTES_MIN:
        detail = f"a body of {head.content_bytes} bytes is too short to measure with"
        raise MeasurementFailedError(Operation.REQUEST, FailureKind.MALFORMED, detail)


def check_kind(head: ResponseHead, *, may_be_chunked: bool = False) -> None:
    """Refuse a captive portal's page, and a compressed or chunked body.

    Raises:
        MeasurementFailedError: (request, intercepted | malformed).
    """
    if head.headers.get("content-type", "").lower().startswith("text/html"):
        raise MeasurementFailedError(Operation.REQUEST, FailureKind.INTERCEPTED, "a web page came instead of the data")
    is_chunked = "transfer-encoding" in head.headers
    if (is_chunked and not may_be_chunked) or "content-encoding" in head.headers:
        raise MeasurementFailedError(
            Operation.REQUEST, FailureKind.MALFORMED, "the body is encoded: its size is unknown"
        )


def _word(text: str | None) -> str | None:
    """A header's value, if it is a plain word: anybody may have sent it."""
    return text if text is not None and re.fullmatch(r"[a-z0-9_]{1,15}", text) else None
