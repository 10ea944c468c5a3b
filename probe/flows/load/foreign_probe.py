"""One request of a byte or so on a connection of its own, each step timed by the kernel where it can.

While a bulk transfer runs in the same process, the program itself wakes up milliseconds late. So the TCP handshake is
what the kernel took for the delay of SYN and SYN/ACK (TCP_INFO), and the answer's arrival is the kernel's receive
stamp.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from probe.errors import MeasurementFailedError
from probe.flows.bulk.http_head import HEAD_BYTES_MAX, check_status, find_head, host_header, request_head
from probe.flows.bulk.stream import USER_AGENT
from probe.flows.bulk.tls_contexts import TlsContexts
from probe.flows.echo.engine import ByteCount
from probe.flows.faults import failed
from probe.flows.http.tls_client import sni_of
from probe.flows.load.responsiveness import ForeignProbe
from probe.flows.moments import Moment, ask_for_stamps, delay_ns, now, stamp_of
from probe.flows.tcp_info import read_tcp_info
from probe.messages import FailureKind, Operation

_NS_PER_S: Final = 1e9
_ANCILLARY_BYTES: Final = 256
# A page of a captive portal may follow the head: one read is enough to know that an answer came.
_READ_BYTES: Final = HEAD_BYTES_MAX
# Close with RST: thousands of probes must not leave connections in TIME_WAIT.
_LINGER_RESET: Final = struct.pack("ii", 1, 0)
# A full handshake of TLS 1.2 takes two round trips until data may go, TLS 1.3 one (RFC 5246 7.3, RFC 8446 2).
_TLS_ROUND_TRIPS: Final = {"TLSv1.2": 2, "TLSv1.3": 1}


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to ask for what. `tls`, which all requests share, is absent for plain HTTP."""

    address: str
    port: int
    host: str
    path: str
    tls: TlsContexts | None = None


async def probe_once(
    target: Target, open_socket: Callable[[], socket.socket], time_out_s: float, usage: ByteCount
) -> ForeignProbe:
    """Connect, ask, take the answer; `usage` hears what it cost, by the kernel's count.

    A peer that refuses the cipher which suits this CPU is asked again at once, on a connection of its own.

    Raises:
        MeasurementFailedError: (connect | tls | request, ...) which step said no; (request, timed_out) no answer
            within `time_out_s` seconds for everything.
        NotRunError: from `open_socket`, the link is down; the file of authorities cannot be read (`tool_missing`).
    """
    try:
        async with asyncio.timeout(time_out_s):
            if target.tls is None:
                return await _connect_and_ask(target, None, open_socket, usage)
            return await _connect_and_ask_over_tls(target, target.tls, open_socket, usage)
    except TimeoutError as error:
        detail = f"no answer within {time_out_s:.1f} s"
        raise MeasurementFailedError(Operation.REQUEST, FailureKind.TIMED_OUT, detail) from error


async def _connect_and_ask_over_tls(
    target: Target, contexts: TlsContexts, open_socket: Callable[[], socket.socket], usage: ByteCount
) -> ForeignProbe:
    """Once, and once more where a failed handshake leaves another context to try; the times are of the last one."""
    context = contexts.context()
    try:
        return await _connect_and_ask(target, context, open_socket, usage)
    except MeasurementFailedError as error:
        is_handshake = error.failure.operation is Operation.TLS
        if not is_handshake or not contexts.may_try_again(context, error.failure.kind):
            raise
    return await _connect_and_ask(target, contexts.context(), open_socket, usage)


async def _connect_and_ask(
    target: Target, tls: ssl.SSLContext | None, open_socket: Callable[[], socket.socket], usage: ByteCount
) -> ForeignProbe:
    with contextlib.closing(open_socket()) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ask_for_stamps(sock)
        try:
            return await _probe(target, tls, sock)
        finally:
            _count(sock, usage)


def _count(sock: socket.socket, usage: ByteCount) -> None:
    with contextlib.suppress(OSError):  # a TLS connection that was given up is closed already
        info = read_tcp_info(sock)
        usage.sent_bytes += info.acked_bytes or 0
        usage.received_bytes += info.received_bytes or 0


async def _probe(target: Target, tls: ssl.SSLContext | None, sock: socket.socket) -> ForeignProbe:
    loop = asyncio.get_running_loop()
    began_s = time.monotonic()
    try:
        await loop.sock_connect(sock, (target.address, target.port))
    except OSError as error:
        raise failed(Operation.CONNECT, error) from error
    tcp_s = read_tcp_info(sock).rtt_s or time.monotonic() - began_s
    request = request_head(
        "GET", host_header(target.host, target.port, tls=tls is not None), target.path, agent=USER_AGENT
    )
    if tls is None:
        http_s = await _ask(sock, request)
        return ForeignProbe(time.monotonic(), tcp_s, http_s)
    tls_s, http_s = await _ask_over_tls(target, tls, sock, request)
    return ForeignProbe(time.monotonic(), tcp_s, http_s, tls_s)


async def _ask(sock: socket.socket, request: bytes) -> float:
    """Seconds from the request to the answer, by the kernel's stamp of its arrival."""
    sent = now()
    try:
        sock.send(request)  # a few hundred bytes: an empty send buffer takes them whole
        await _readable(sock)
        answer, ancillary, _, _ = sock.recvmsg(_READ_BYTES, _ANCILLARY_BYTES)
    except OSError as error:
        raise failed(Operation.REQUEST, error) from error
    received = now()
    _check(answer)
    return _seconds(sent, stamp_of(ancillary), received)


def _seconds(sent: Moment, stamp_ns: int | None, received: Moment) -> float:
    """The kernel's figure, or the program's where a stepped clock or a missing stamp leaves nothing better."""
    delay = delay_ns(sent, stamp_ns, received)
    return (received.monotonic_ns - sent.monotonic_ns if delay is None else delay) / _NS_PER_S


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(sock.fileno(), _wake, ready)
    try:
        await ready
    finally:
        loop.remove_reader(sock.fileno())


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


async def _ask_over_tls(
    target: Target, tls: ssl.SSLContext, sock: socket.socket, request: bytes
) -> tuple[float, float]:
    """Seconds of the handshake per round trip of it, and seconds from the request to the answer."""
    began_s = time.monotonic()
    try:
        reader, writer = await asyncio.open_connection(sock=sock, ssl=tls, server_hostname=sni_of(target.host))
    except (OSError, ValueError) as error:  # ssl.SSLError too; ValueError: a host that can stand in no certificate
        raise failed(Operation.TLS, error) from error
    try:
        asked_s = time.monotonic()
        version = writer.get_extra_info("ssl_object").version()
        writer.write(request)
        _check(await reader.read(_READ_BYTES))
        answered_s = time.monotonic()
    except OSError as error:
        raise failed(Operation.REQUEST, error) from error
    finally:
        writer.transport.abort()
    return (asked_s - began_s) / _TLS_ROUND_TRIPS.get(version, 1), answered_s - asked_s


def _check(answer: bytes) -> None:
    """Accept the beginning of a good answer.

    Raises:
        MeasurementFailedError: (request, ...) nothing, no HTTP, or not 2xx.
    """
    if not answer:
        raise MeasurementFailedError(Operation.REQUEST, FailureKind.CLOSED, "the peer closed instead of answering")
    head = find_head(answer)
    if head is not None:
        check_status(head)
