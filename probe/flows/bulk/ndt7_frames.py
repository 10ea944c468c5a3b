"""What comes from an ndt7 server: bulk is dropped by the wire, everything else is read and bounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from probe.errors import MeasurementFailedError
from probe.flows.bulk.websocket import FrameHeader, Opcode, header_bytes, parse_header
from probe.flows.bulk.wire import Wire
from probe.messages import FailureKind, Operation

# What the reference server sends and takes at most (its `spec.MaxMessageSize`).
_MESSAGE_BYTES_MAX: Final = 1 << 24
# A measurement has less than 4 KiB; what is longer is dropped.
_TEXT_BYTES_MAX: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Told:
    """A whole frame that is no bulk. `payload` is empty for a text that is too long, or comes in parts."""

    opcode: Opcode
    payload: bytes


class EndedError(Exception):
    """The connection has ended; whether that is in order depends on when."""


class Frames:
    """Follows the frames of one connection.

    Attributes:
        overhead_bytes: all that was read so far and is no bulk: headers, texts, control frames.
    """

    def __init__(self, wire: Wire, *, may_be_bulk: bool) -> None:
        self.overhead_bytes = 0
        self._wire, self._may_be_bulk = wire, may_be_bulk
        self._ahead = b""
        self._header = b""
        self._frame: FrameHeader | None = None
        self._rest_bytes = 0
        self._payload = b""
        self._is_bulk = self._message_is_bulk = False

    @property
    def ahead_bytes(self) -> int:
        """What was fed and is still to be stepped through."""
        return len(self._ahead)

    def feed(self, ahead: bytes) -> None:
        """Take what came together with the answer to the handshake."""
        self._ahead += ahead

    def step(self, buffer: memoryview, bulk_bytes_max: int) -> int | Told:
        """Make one step: the bulk bytes that were dropped (at most so many, maybe 0), or a frame that is none.

        Raises:
            BlockingIOError: nothing has come.
            EndedError: the connection has ended.
            MeasurementFailedError: (transfer, malformed) these are no frames of an ndt7 server; (tls, ...).
            OSError: the socket's.
        """
        if self._frame is None:
            return self._step_header()
        if self._is_bulk:
            return self._step_bulk(buffer, bulk_bytes_max)
        return self._step_rest()

    def _step_header(self) -> int | Told:
        self._header += self._take(header_bytes(self._header) - len(self._header))
        if len(self._header) < header_bytes(self._header):
            return 0
        frame, self._header = parse_header(self._header), b""
        self.overhead_bytes += frame.wire_bytes
        self._begin(frame)
        return self._finish() if not frame.payload_bytes else 0

    def _begin(self, frame: FrameHeader) -> None:
        if frame.payload_bytes > _MESSAGE_BYTES_MAX:
            raise _malformed(f"a frame of {frame.payload_bytes} bytes")
        if frame.opcode in {Opcode.BINARY, Opcode.TEXT}:
            self._message_is_bulk = frame.opcode is Opcode.BINARY
        # The parts of a message are of its kind; control frames may stand between them (RFC 6455 section 5.4).
        self._is_bulk = self._message_is_bulk and not frame.opcode.is_control
        if self._is_bulk and not self._may_be_bulk:
            raise _malformed("the peer sends data where it should receive it")
        self._frame, self._rest_bytes, self._payload = frame, frame.payload_bytes, b""

    def _step_bulk(self, buffer: memoryview, bulk_bytes_max: int) -> int:
        wanted_bytes = min(self._rest_bytes, bulk_bytes_max)
        if self._ahead:
            dropped_bytes = len(self._take(wanted_bytes))
        else:
            dropped_bytes = self._wire.discard(buffer, min(wanted_bytes, len(buffer)))
            if not dropped_bytes:
                raise EndedError
        self._rest_bytes -= dropped_bytes
        if not self._rest_bytes:
            self._frame = None
        return dropped_bytes

    def _step_rest(self) -> int | Told:
        part = self._take(self._rest_bytes)
        self._rest_bytes -= len(part)
        self.overhead_bytes += len(part)
        if len(self._payload) <= _TEXT_BYTES_MAX:
            self._payload += part
        return self._finish() if not self._rest_bytes else 0

    def _finish(self) -> int | Told:
        """The end of a frame; bulk without a byte is nothing."""
        frame, self._frame = self._frame, None
        if frame is None or self._is_bulk:
            return 0
        is_whole = frame.is_final and frame.payload_bytes <= _TEXT_BYTES_MAX and frame.opcode is not Opcode.CONTINUATION
        return Told(frame.opcode, self._payload if is_whole else b"")

    def _take(self, length_bytes: int) -> bytes:
        """At most so many bytes, from what is here already or from the wire."""
        if self._ahead:
            part, self._ahead = self._ahead[:length_bytes], self._ahead[length_bytes:]
            return part
        part = self._wire.receive(min(length_bytes, _TEXT_BYTES_MAX))
        if not part:
            raise EndedError
        return part


def _malformed(detail: str) -> MeasurementFailedError:
    return MeasurementFailedError(Operation.TRANSFER, FailureKind.MALFORMED, detail)
