"""One request and its response over a connection that is open, timed and bounded."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Final

from probe.clock import NS_PER_S
from probe.errors import MeasurementFailedError
from probe.flows.faults import failed
from probe.flows.http.channel import Channel
from probe.flows.http.messages import End, Event, Head, HttpRequest, closed_early
from probe.flows.http.wires import new_wire
from probe.messages import FailureKind, Operation

HTTP_2: Final = "h2"  # as ALPN names it (RFC 9113 section 3.2)
HTTP_1_1: Final = "http/1.1"


@dataclass(slots=True)
class HttpResponse:
    """What came back.

    `first_byte_s` is from the request's sending to the arrival of the response's head, `transfer_s` from there to the
    arrival of its last byte. `body` has what came, up to the bound; `is_complete` says whether that is all of it.
    """

    head: Head
    first_byte_s: float
    transfer_s: float = 0.0
    body_bytes: int = 0
    is_complete: bool = False
    body: bytearray = field(default_factory=bytearray)

    def take(self, part: bytes, body_bytes_max: int) -> bool:
        """Keep what fits; whether all of it did."""
        room_bytes = body_bytes_max - self.body_bytes
        self.body += part[:room_bytes]
        self.body_bytes = len(self.body)
        return len(part) <= room_bytes

    @property
    def sha256(self) -> str:
        """The digest of what came, in hexadecimal digits."""
        return hashlib.sha256(self.body).hexdigest()


class HttpConnection:
    """Requests over one channel, one after another: HTTP/2 where ALPN settled it, else HTTP/1.1."""

    def __init__(self, channel: Channel) -> None:
        is_2 = channel.tls is not None and channel.tls.alpn == HTTP_2
        self.version = "2" if is_2 else "1.1"
        self._channel = channel
        self._wire = new_wire(self.version)

    async def ask(self, request: HttpRequest, time_out_s: float, body_bytes_max: int) -> HttpResponse:
        """Ask, wait at most `time_out_s` for the head and as long again for the body; stop reading at the bound.

        Raises:
            MeasurementFailedError: (request, ...) until the head has come, (transfer, ...) after it; timed_out and
                stalled, closed, reset, malformed.
        """
        content = self._wire.begin(request)
        began_ns = time.monotonic_ns()
        async with contextlib.aclosing(self._events(content)) as events:
            head = await _head(events, time_out_s)
            head_ns = self._channel.arrived_ns
            response = HttpResponse(head, (head_ns - began_ns) / NS_PER_S)
            await _fill(response, events, time_out_s, body_bytes_max)
        response.transfer_s = (self._channel.arrived_ns - head_ns) / NS_PER_S
        return response

    async def _events(self, content: bytes) -> AsyncGenerator[Event, None]:
        """What comes, in order, until the response or the connection ends."""
        await self._channel.send(content)
        while content:
            content = await self._channel.receive()
            for event in self._wire.feed(content):
                yield event
            await self._channel.send(self._wire.pending())
        raise closed_early()


async def _head(events: AsyncIterator[Event], time_out_s: float) -> Head:
    try:
        async with asyncio.timeout(time_out_s):
            async for event in events:
                if isinstance(event, Head):
                    return event
    except OSError as error:
        raise _explained(Operation.REQUEST, error, time_out_s) from error
    raise closed_early()


async def _fill(response: HttpResponse, events: AsyncIterator[Event], time_out_s: float, body_bytes_max: int) -> None:
    try:
        async with asyncio.timeout(time_out_s):
            async for event in events:
                if isinstance(event, End):
                    response.is_complete = True
                    return
                if isinstance(event, bytes) and not response.take(event, body_bytes_max):
                    return
    except OSError as error:
        raise _explained(Operation.TRANSFER, error, time_out_s) from error
    except MeasurementFailedError as error:
        raise MeasurementFailedError(Operation.TRANSFER, error.failure.kind, error.failure.detail) from error


def _explained(operation: Operation, error: OSError, time_out_s: float) -> MeasurementFailedError:
    """`TimeoutError` is an `OSError`; one of the socket's own (ETIMEDOUT) has a number."""
    if not isinstance(error, TimeoutError) or error.errno is not None:
        return failed(operation, error)
    if operation is Operation.TRANSFER:
        return MeasurementFailedError(operation, FailureKind.STALLED, f"the page was not there after {time_out_s:g} s")
    return MeasurementFailedError(operation, FailureKind.TIMED_OUT, f"no answer within {time_out_s:g} s")
