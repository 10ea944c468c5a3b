"""Where a response's body ends (RFC 9112 section 6.3), for bodies of which nothing is kept."""

from __future__ import annotations

import re
from typing import Final

from probe.errors import MeasurementFailedError
from probe.flows.bulk.http_head import ResponseHead
from probe.messages import FailureKind, Operation

_LINE_BYTES_MAX: Final = 1024
_SIZE_LINE: Final = re.compile(rb"^([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?$")
_WITHOUT_BODY: Final = frozenset({204, 304})


class BodyEnd:
    """Follows one body to its end.

    Attributes:
        is_reached: whether all of it was passed; never for one that ends with the connection.
    """

    def __init__(self, head: ResponseHead) -> None:
        self._is_chunked = "transfer-encoding" in head.headers
        self._rest_bytes = None if self._is_chunked else head.content_bytes
        self._line = b""
        self._in_trailer = False
        self.is_reached = head.status in _WITHOUT_BODY or self._rest_bytes == 0

    def take(self, part: bytes) -> None:
        """Pass over what has come of it.

        Raises:
            MeasurementFailedError: (transfer, malformed) the chunks are none.
        """
        if self._is_chunked:
            self._take_chunks(part)
        elif self._rest_bytes is not None:
            self._rest_bytes = max(0, self._rest_bytes - len(part))
            self.is_reached = self._rest_bytes == 0

    def _take_chunks(self, part: bytes) -> None:
        while part and not self.is_reached:
            if self._rest_bytes:
                passed = min(self._rest_bytes, len(part))
                self._rest_bytes -= passed
                part = part[passed:]
                continue
            line, end, part = part.partition(b"\n")
            self._line += line
            if len(self._line) > _LINE_BYTES_MAX:
                raise _malformed(self._line)
            if end:
                self._take_line(self._line.rstrip(b"\r"))
                self._line = b""

    def _take_line(self, line: bytes) -> None:
        """A size, the end of the chunk before it, or a line of the trailer."""
        if self._in_trailer:
            self.is_reached = not line
            return
        if not line:
            return
        size = _SIZE_LINE.match(line)
        if size is None:
            raise _malformed(line)
        self._rest_bytes = int(size[1], 16)
        self._in_trailer = self._rest_bytes == 0


def _malformed(line: bytes) -> MeasurementFailedError:
    return MeasurementFailedError(Operation.TRANSFER, FailureKind.MALFORMED, f"not a chunk's size: {line[:60]!r}")
