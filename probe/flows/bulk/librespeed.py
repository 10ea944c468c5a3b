"""Bulk transfer with LibreSpeed's backends, whatever they are written in: `garbage` gives bytes, `empty` takes them.

The protocol is that of the project's own clients: `GET garbage?ckSize=N` for N MiB, `POST empty` with a body of 20 MiB.
Its figures are not used: what counts is what the kernel counted, ramp and overhead are not corrected by factors.
"""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from typing import Final

from probe.errors import MeasurementFailedError
from probe.flows.bulk.allowance import Allowance
from probe.flows.bulk.http_body import BodyEnd
from probe.flows.bulk.http_head import HEAD_BYTES_MAX, ResponseHead, request_head
from probe.flows.bulk.stream import USER_AGENT, Order, StreamState
from probe.flows.bulk.stream_download import DownloadStream, check_kind
from probe.flows.bulk.stream_upload import UploadStream
from probe.flows.bulk.upload_source import UploadSource
from probe.flows.bulk.wire import Wire
from probe.flows.faults import failed
from probe.messages import FailureKind, Operation

_OK: Final = 200
_MIB: Final = 1 << 20
# More is cut down to this by every backend.
_CHUNKS_MAX: Final = 1024
# The blob of the project's web client, and so what its servers are set up to take (`client_max_body_size 20M`).
POST_BYTES_MAX: Final = 20 * _MIB


class LibreSpeedDownload(DownloadStream):
    """`GET garbage` of a GiB, by HTTP/1.0: the body then is the bytes alone, and ends with the connection.

    To HTTP/1.1 most backends answer in chunks, whose sizes stand between the bytes that the kernel drops unseen. One
    that sends chunks all the same is measured with them: they add 10 bytes to each MiB in the backend that does so.
    """

    def __init__(self, sock: socket.socket, order: Order, wire: Wire | None = None) -> None:
        super().__init__(sock, order, wire)
        self._ends_with_connection = True

    def share(self, allowance: Allowance) -> None:
        """Take from `allowance` together with other streams; the backend knows no parts."""
        allowance.by_window = allowance.is_limited
        super().share(allowance)

    def _request(self) -> bytes:
        # The random word keeps caches out, as the project's clients do it.
        path = f"{self.order.path}?ckSize={_CHUNKS_MAX}&r={os.urandom(8).hex()}"
        return request_head("GET", self.host_header, path, agent=USER_AGENT, version="1.0")

    def _accept_head(self, head: ResponseHead, rest_bytes: int) -> None:
        if head.status != _OK:
            raise MeasurementFailedError(Operation.REQUEST, FailureKind.HTTP_STATUS, f"the peer answered {head.status}")
        check_kind(head, may_be_chunked=True)
        self._accept_whole(rest_bytes)
        self._head_bytes += head.wire_bytes
        self._keeps_alive = False
        self._ends_with_connection = head.content_bytes is None
        length_bytes = _CHUNKS_MAX * _MIB if head.content_bytes is None else head.content_bytes
        if length_bytes < _MIB:
            detail = f"a body of {length_bytes} bytes is too short to measure with"
            raise MeasurementFailedError(Operation.REQUEST, FailureKind.MALFORMED, detail)
        # Nothing says where chunks end: after as much as was asked for, whoever keeps the connection open is left.
        self._rest_bytes = length_bytes - rest_bytes
        self._enter(StreamState.MOVING)

    def _end_of_connection(self) -> None:
        if self._ends_with_connection:
            self._rest_bytes = None
        super()._end_of_connection()


class LibreSpeedUpload(UploadStream):
    """`POST empty` of 20 MiB, again and again on one connection.

    The answer comes after the body, and may have a body of its own: the next POST waits for its end, one round trip
    in which the other streams go on.
    """

    def __init__(self, sock: socket.socket, order: Order, source: UploadSource, wire: Wire | None = None) -> None:
        shorter = replace(order, post_bytes=min(order.post_bytes, POST_BYTES_MAX))
        super().__init__(sock, shorter, source, wire)
        self._answer_end: BodyEnd | None = None

    def _accept_head(self, head: ResponseHead, rest_bytes: int) -> None:
        self._answer_end = BodyEnd(head)
        self._answer_end.take(self._received)
        super()._accept_head(head, rest_bytes)

    def _read_head(self) -> None:
        """The head of the answer; or, once that is known, the rest of its body."""
        if self._answer is None:
            super()._read_head()
        else:
            self._listen()

    def _listen(self) -> None:
        if self._answer is None or self._answer_end is None:
            super()._read_head()
            return
        try:
            part = self.wire.receive(HEAD_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError as error:
            raise failed(Operation.TRANSFER, error) from error
        if not part:
            self._end_of_connection()
            return
        self._answer_end.take(part)
        if self.state is StreamState.WAITING:
            self._end_of_post()

    def _end_of_connection(self) -> None:
        if self._rest_bytes:
            raise MeasurementFailedError(Operation.TRANSFER, FailureKind.CLOSED, "the peer closed during the upload")
        self._enter(StreamState.ENDED)

    def _end_of_post(self) -> None:
        is_complete = self._answer is None or self._answer_end is None or self._answer_end.is_reached
        if is_complete or (self._answer is not None and not self._answer.keeps_alive):
            super()._end_of_post()
        else:
            self._enter(StreamState.WAITING)
