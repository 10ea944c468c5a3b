"""Bulk transfer with ndt7 servers: one test and one WebSocket per stream.

The specification means one stream; several are several tests at the same time, and what counts is what the kernel
counted less the framing. Message sizes are not scaled, because nothing here is measured by messages.
"""

from __future__ import annotations

import contextlib
import mmap
import select
import socket
from typing import Final

from msgspec.structs import replace

from probe.flows.bulk.allowance import Allowance
from probe.flows.bulk.http_head import ResponseHead
from probe.flows.bulk.ndt7_frames import EndedError
from probe.flows.bulk.ndt7_session import Ndt7Session
from probe.flows.bulk.stream import Order, StreamState
from probe.flows.bulk.stream_download import DownloadStream
from probe.flows.bulk.stream_upload import UploadStream
from probe.flows.bulk.tls_wire import RECORD_BYTES, SEND_BYTES_MAX
from probe.flows.bulk.upload_source import UploadSource
from probe.flows.bulk.websocket import Opcode, client_header
from probe.flows.bulk.wire import Wire
from probe.flows.faults import failed
from probe.messages import Operation

# With its header a frame fills four TLS records; a server must take messages of 128 KiB.
FRAME_BYTES: Final = 64 * 1024
HEADER_BYTES: Final = 8
# Of headers, texts and control frames, at one look at a socket: more is left for the next one.
_OVERHEAD_BYTES_MAX: Final = 64 * 1024


def make_frames(source: int, length_bytes: int) -> None:
    """Write the headers of binary frames into a memory file of random bytes: it then is frames to send, one by one."""
    header = client_header(Opcode.BINARY, FRAME_BYTES - HEADER_BYTES)
    with mmap.mmap(source, length_bytes) as content:
        for offset in range(0, length_bytes, FRAME_BYTES):
            content[offset : offset + HEADER_BYTES] = header


class Ndt7Download(DownloadStream):
    """The server sends binary messages, and the kernel drops them; its own words between them are read."""

    is_bare = False

    def __init__(self, sock: socket.socket, order: Order, wire: Wire | None = None) -> None:
        super().__init__(sock, order, wire)
        self._session = Ndt7Session(self.wire, may_be_bulk=True)

    @property
    def congestion_control(self) -> str | None:
        """The peer's algorithm, where it says so: BBR."""
        return "bbr" if self._session.uses_bbr else None

    def share(self, allowance: Allowance) -> None:
        """Take from `allowance` together with other streams; the server sends unasked."""
        allowance.by_window = allowance.is_limited
        super().share(allowance)

    def refresh(self) -> int:
        """Ask the kernel; of the round trip the server's kernel knows more."""
        counted_bytes = super().refresh()
        known_s = self._session.min_rtt_s
        if self.info is not None and known_s is not None:
            min_rtt_s = known_s if self.info.min_rtt_s is None else min(known_s, self.info.min_rtt_s)
            self.info = replace(self.info, min_rtt_s=min_rtt_s)
        return counted_bytes

    def _request(self) -> bytes:
        return self._session.request(self.host_header, self.order.path)

    @property
    def _pending_bytes(self) -> int:
        return self._session.ahead_bytes + self.wire.pending_bytes

    def _is_answer(self, head: ResponseHead) -> bool:
        return self._session.is_answer(head)

    def _accept_head(self, head: ResponseHead, rest_bytes: int) -> None:
        self._accept_whole(rest_bytes)
        self._session.begin(head, self._received)
        self._head_bytes = self._session.overhead_bytes
        self._enter(StreamState.MOVING)

    def _discard(self, buffer: memoryview, wanted_bytes: int) -> int:
        """Follow the frames until nothing more has come, or so many bytes of bulk are dropped."""
        dropped_bytes, heard_bytes = 0, self._session.overhead_bytes
        try:
            # Frames without bulk end the turn too: a peer that sends nothing else must not hold the thread for ever.
            while dropped_bytes < wanted_bytes and self._session.overhead_bytes - heard_bytes < _OVERHEAD_BYTES_MAX:
                dropped_bytes += self._session.step(buffer, wanted_bytes - dropped_bytes)
        except BlockingIOError:
            pass
        except EndedError:
            self._end()
        finally:
            self._head_bytes = self._session.overhead_bytes
        self._reply()
        return dropped_bytes

    def _reply(self) -> None:
        """Answer a Ping or a Close; what does not fit now is sent the next time, or never."""
        if not self._session.reply:
            return
        try:
            self._session.reply = self._session.reply[self.wire.send(self._session.reply) :]
        except BlockingIOError:
            return
        except OSError as error:
            raise failed(Operation.TRANSFER, error) from error


class Ndt7Upload(UploadStream):
    """The kernel sends frames out of the memory file; `source` is one that `make_frames` prepares."""

    is_bare = False

    def __init__(self, sock: socket.socket, order: Order, source: UploadSource, wire: Wire | None = None) -> None:
        super().__init__(sock, order, source, wire)
        self._session = Ndt7Session(self.wire, may_be_bulk=False)
        self._handshake_bytes = 0
        self._sent_bytes = 0
        self._is_blocked = False  # the wire wants the same bytes offered again
        self._listening = memoryview(bytearray(0))

    def _request(self) -> bytes:
        request = self._session.request(self.host_header, self.order.path)
        self._head_bytes = self._handshake_bytes = len(request)
        return request

    def _asked(self) -> None:
        self._enter(StreamState.WAITING)

    @property
    def _pending_bytes(self) -> int:
        return self._session.ahead_bytes + self.wire.pending_bytes

    def _is_answer(self, head: ResponseHead) -> bool:
        return self._session.is_answer(head)

    def _accept_head(self, head: ResponseHead, rest_bytes: int) -> None:
        del rest_bytes
        self._session.begin(head, self._received)
        self._enter(StreamState.MOVING)

    def _listen(self) -> None:
        """Hear the server out: its measurements, a Ping, a Close."""
        heard_bytes = self._session.overhead_bytes
        try:
            while self._session.overhead_bytes - heard_bytes < _OVERHEAD_BYTES_MAX:
                self._session.step(self._listening, 0)
        except BlockingIOError:
            return
        except EndedError:
            if not self._is_blocked and not self._sent_bytes % FRAME_BYTES:
                with contextlib.suppress(OSError):  # a courtesy: the connection ends either way
                    self._send_reply()
            self._enter(StreamState.ENDED)

    def _send(self) -> None:
        if not self._granted_bytes:
            self._granted_bytes = self.allowance.take(self.allowance.part_bytes)
        if not self._granted_bytes:  # nothing more to send, ever: only listen
            self.wanted_when_moving = select.EPOLLIN
            return
        try:
            self._send_frames()
        except BlockingIOError:
            self._is_blocked = True
        except OSError as error:
            self._explain(Operation.TRANSFER, error)

    def _send_frames(self) -> None:
        in_frame_bytes = self._sent_bytes % FRAME_BYTES
        if self._session.reply and not in_frame_bytes and not self._is_blocked:
            self._send_reply()
            if self._session.reply:
                return
        offset, frame_rest_bytes = self._sent_bytes % self._source.length_bytes, FRAME_BYTES - in_frame_bytes
        granted_bytes = _with_headers(self._granted_bytes, frame_rest_bytes % FRAME_BYTES)
        count = min(self._source.length_bytes - offset, granted_bytes, SEND_BYTES_MAX)
        # Stop at the frame's end, but never offer less than the record that the wire wants again.
        if self._session.reply and (not self._is_blocked or frame_rest_bytes >= RECORD_BYTES):
            count = min(count, frame_rest_bytes)
        sent_bytes = self.wire.send_source(self._source.file(), offset, count)
        self._is_blocked = sent_bytes < count
        begun_before = _frames_begun(self._sent_bytes)
        self._sent_bytes += sent_bytes
        begun = _frames_begun(self._sent_bytes)
        self._hand_over(sent_bytes - (begun - begun_before) * HEADER_BYTES)
        self._head_bytes = self._handshake_bytes + begun * HEADER_BYTES

    def _send_reply(self) -> None:
        """Between two frames."""
        sent_bytes = self.wire.send(self._session.reply)
        self._session.reply = self._session.reply[sent_bytes:]
        self._handshake_bytes += sent_bytes

    def _explain(self, operation: Operation, error: OSError) -> None:
        """The server has gone: at the end of a test that is its right."""
        if self.state is not StreamState.MOVING:
            super()._explain(operation, error)
        try:
            self._session.end(error)
        except EndedError:
            self._enter(StreamState.ENDED)


def _frames_begun(sent_bytes: int) -> int:
    return -(-sent_bytes // FRAME_BYTES)


def _with_headers(payload_bytes: int, frame_rest_bytes: int) -> int:
    """What so much payload takes on the connection, `frame_rest_bytes` of which still fit into the frame under way."""
    new_frames = -(-max(0, payload_bytes - frame_rest_bytes) // (FRAME_BYTES - HEADER_BYTES))
    return payload_bytes + new_frames * HEADER_BYTES
