"""One ndt7 test on one WebSocket (M-Lab's specification, v0.11), what both directions share.

Servers end a test after 10 s (15 s at most), often in the middle of a frame: that is its proper end.
"""

from __future__ import annotations

import os
import struct
import time
from typing import Any, Final, NoReturn

import msgspec

from probe.errors import MeasurementFailedError
from probe.flows.bulk.http_head import ResponseHead
from probe.flows.bulk.ndt7_frames import EndedError, Frames, Told
from probe.flows.bulk.stream import USER_AGENT
from probe.flows.bulk.websocket import (
    KEY_BYTES,
    SWITCHING,
    Opcode,
    check_upgrade,
    client_frame,
    new_key,
    upgrade_request,
)
from probe.flows.bulk.wire import Wire
from probe.flows.faults import failed
from probe.messages import FailureKind, Operation

SUBPROTOCOL: Final = "net.measurementlab.ndt.v7"
# The sender should stop after 10 s: a second of grace for a server that counts from the handshake.
_PROPER_END_S: Final = 9.0
_US_PER_S: Final = 1e6
_MIN_RTT_US: Final = range(1, 60_000_000)
# RFC 6455 section 7.4.1: done, going away, and no code at all.
_PROPER_CODES: Final = frozenset({1000, 1001, 1005})
_NO_CODE: Final = 1005


class _Counters(msgspec.Struct, rename={"min_rtt_us": "MinRTT"}):
    """Of the server's kernel, by its own names."""

    min_rtt_us: int | None = None


class _Measurement(msgspec.Struct, rename={"tcp": "TCPInfo", "bbr": "BBRInfo"}):
    """What a server says of the transfer, some four times a second."""

    tcp: _Counters | None = None
    bbr: dict[str, Any] | None = None


_DECODER: Final = msgspec.json.Decoder(_Measurement)


class Ndt7Session:
    """The handshake, and what the server says on the way.

    Attributes:
        reply: what is still to be sent to the server before anything else, at the boundary of a frame.
        min_rtt_s: the smallest round trip that the server's kernel saw, as it says.
        uses_bbr: whether the server says that it sends by BBR.
    """

    def __init__(self, wire: Wire, *, may_be_bulk: bool) -> None:
        self.reply = b""
        self.min_rtt_s: float | None = None
        self.uses_bbr = False
        self._key = new_key(os.urandom(KEY_BYTES))
        self._frames = Frames(wire, may_be_bulk=may_be_bulk)
        self._head_bytes = 0
        self._began_s = 0.0

    @property
    def overhead_bytes(self) -> int:
        """All that was read so far and is no bulk."""
        return self._head_bytes + self._frames.overhead_bytes

    @property
    def ahead_bytes(self) -> int:
        """What came with the answer to the handshake, and is still to be stepped through."""
        return self._frames.ahead_bytes

    def request(self, host: str, path: str) -> bytes:
        """The opening handshake."""
        return upgrade_request(host, path, agent=USER_AGENT, key=self._key, protocol=SUBPROTOCOL)

    def is_answer(self, head: ResponseHead) -> bool:
        """Whether this is the answer; interim ones (1xx but 101) are passed over.

        Raises:
            MeasurementFailedError: (request, ...) it is no, or not the answer to our handshake.
        """
        if head.is_interim and head.status != SWITCHING:
            return False
        check_upgrade(head, key=self._key, protocol=SUBPROTOCOL)
        return True

    def begin(self, head: ResponseHead, ahead: bytes) -> None:
        """The test begins; `ahead` came together with the answer."""
        self._began_s = time.monotonic()
        self._head_bytes = head.wire_bytes
        self._frames.feed(ahead)

    def step(self, buffer: memoryview, bulk_bytes_max: int) -> int:
        """Make one step through what came; how many bytes of bulk were dropped by it, at most so many.

        Raises:
            BlockingIOError: nothing has come.
            EndedError: the test is over, as it should be.
            MeasurementFailedError: (transfer, ...) it is over too early, or what comes is no ndt7.
        """
        try:
            came = self._frames.step(buffer, bulk_bytes_max)
        except BlockingIOError:
            raise
        except (OSError, EndedError) as error:
            self.end(error)
        if isinstance(came, Told):
            self._hear(came)
            return 0
        return came

    def end(self, error: OSError | EndedError) -> NoReturn:
        """Say what the end of the connection means: raises, always.

        Raises:
            EndedError: the test had its time.
            MeasurementFailedError: (transfer, closed | reset | ...).
        """
        passed_s = time.monotonic() - self._began_s
        if passed_s >= _PROPER_END_S:
            raise EndedError from error
        if isinstance(error, OSError):
            raise failed(Operation.TRANSFER, error) from error
        detail = f"the peer closed {passed_s:.1f} s after the beginning"
        raise MeasurementFailedError(Operation.TRANSFER, FailureKind.CLOSED, detail) from error

    def _hear(self, told: Told) -> None:
        if told.opcode is Opcode.TEXT:
            self._note(told.payload)
        elif told.opcode is Opcode.PING:
            # The most recent one is enough (RFC 6455 section 5.5.3), and one that is on its way already will do.
            self.reply = self.reply or client_frame(Opcode.PONG, told.payload)
        elif told.opcode is Opcode.CLOSE:
            self._hear_close(told.payload)

    def _hear_close(self, payload: bytes) -> None:
        code_bytes = payload[:2]
        code = struct.unpack("!H", code_bytes)[0] if len(code_bytes) == 2 else _NO_CODE  # noqa: PLR2004 - a code's length
        if code not in _PROPER_CODES:
            reason = payload[2:].decode("utf-8", "replace")
            detail = f"the peer ended the test with {code} {reason!r}"
            raise MeasurementFailedError(Operation.TRANSFER, FailureKind.CLOSED, detail)
        self.reply = self.reply or client_frame(Opcode.CLOSE, code_bytes)
        raise EndedError

    def _note(self, text: bytes) -> None:
        """Use what is understood of a measurement; it is a courtesy, so nothing depends on it."""
        try:
            said = _DECODER.decode(text)
        except msgspec.DecodeError:
            return
        self.uses_bbr = self.uses_bbr or said.bbr is not None
        min_rtt_us = said.tcp.min_rtt_us if said.tcp is not None else None
        if min_rtt_us is not None and min_rtt_us in _MIN_RTT_US:
            self.min_rtt_s = min_rtt_us / _US_PER_S
