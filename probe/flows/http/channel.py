"""One TCP connection over a link, plain or through TLS, each step of it timed.

The socket is the link's own, so nothing can leave by another line; there is no pool, no proxy and no environment. The
TLS engine works on memory (`ssl.MemoryBIO`), so that what crosses the line is counted, and what arrives bears the
kernel's stamp: a program that reads late does not read as a slow server.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from probe.clock import NS_PER_S, Clock
from probe.errors import MeasurementFailedError, NotRunError
from probe.flows.faults import failed
from probe.flows.http.tls_client import TlsFacts, client_context, facts, handshake_failed, sni_of
from probe.flows.moments import Moment, ask_for_stamps, delay_ns, now, stamp_of
from probe.flows.tcp_info import read_tcp_info
from probe.links import IpVersion, Link
from probe.messages import FailureKind, NotRunReason, Operation

# More than a TLS record (16 KiB and its overhead, RFC 8446 section 5.2); what one wake-up takes from the kernel.
_RECEIVE_BYTES_MAX: Final = 64 * 1024
_ANCILLARY_BYTES: Final = 64
_TLS_1_3: Final = "TLSv1.3"
_PATIENCE_ROUND_TRIPS: Final = 1.5
_TICKETS: Final = 2  # what OpenSSL's servers send (SSL_CTX_set_num_tickets(3))


class ByteCount(Protocol):
    """Where the cost is kept."""

    sent_bytes: int
    received_bytes: int


@dataclass(slots=True)
class Tally:
    """A cost that nobody else keeps."""

    sent_bytes: int = 0
    received_bytes: int = 0


class Channel:
    """A connection that is open.

    Attributes:
        connect_s: from the call to the kernel until it was established.
        handshake_rtt_s: the kernel's own measure of SYN to SYN/ACK (TCP_INFO); absent when a SYN was repeated.
        tls_s: from the first byte of the handshake to its end; absent without TLS.
        tls: what the handshake settled; absent without TLS.
        arrived_ns: when the last bytes arrived, on the monotonic clock: the kernel's stamp where the clocks allow.
        has_ended: whether the other side closed.
    """

    def __init__(self, sock: socket.socket, usage: ByteCount) -> None:
        self._sock = sock
        self._usage = usage
        self._opened = now()
        self._connection: ssl.SSLObject | None = None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.connect_s = 0.0
        self.handshake_rtt_s: float | None = None
        self.tls_s: float | None = None
        self.tls: TlsFacts | None = None
        self.arrived_ns = self._opened.monotonic_ns
        self.received_bytes = 0
        self.has_ended = False

    async def connect(self, address: str, port: int, time_out_s: float) -> None:
        """Establish it.

        Raises:
            MeasurementFailedError: (connect, timed_out | refused | ...).
        """
        began_ns = time.monotonic_ns()
        try:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ask_for_stamps(self._sock)
            async with asyncio.timeout(time_out_s):
                await asyncio.get_running_loop().sock_connect(self._sock, (address, port))
        except TimeoutError as error:
            raise _timed_out(Operation.CONNECT, f"{address}:{port} did not accept", time_out_s) from error
        except OSError as error:
            raise failed(Operation.CONNECT, error) from error
        self.connect_s = (time.monotonic_ns() - began_ns) / NS_PER_S
        with contextlib.suppress(OSError):  # a connection that was reset already says so at the next step
            self.handshake_rtt_s = read_tcp_info(self._sock).rtt_s or None

    async def secure(self, server_name: str, alpn: tuple[str, ...], clock: Clock, time_out_s: float) -> None:
        """Put TLS on it, and verify who answers.

        Raises:
            MeasurementFailedError: (tls, certificate_invalid | handshake_failed | timed_out | closed | reset).
            NotRunError: this device has no authorities, or its own clock is wrong (`tool_missing`, `clock`).
        """
        context = client_context()
        context.set_alpn_protocols(list(alpn))  # taken over by what is made in the next line
        connection = context.wrap_bio(self._incoming, self._outgoing, server_hostname=sni_of(server_name))
        began_ns = time.monotonic_ns()
        try:
            async with asyncio.timeout(time_out_s):
                await self._until_done(connection.do_handshake)
        except TimeoutError as error:
            raise _timed_out(Operation.TLS, f"{server_name} did not finish its handshake", time_out_s) from error
        except OSError as error:
            with contextlib.suppress(OSError):
                self._sock.send(self._outgoing.read())  # the alert that tells the server why
            raise handshake_failed(error, clock) from error
        self.tls_s = (time.monotonic_ns() - began_ns) / NS_PER_S
        self._connection = connection
        self.tls = facts(connection, clock.wall_ns())

    async def settle(self, time_out_s: float) -> None:
        """Let the other side finish what it sends unasked after a handshake (session tickets, RFC 8446 section 4.6.1).

        A server without TCP_NODELAY holds its second ticket back until the first is confirmed, and its first answer
        until the second is: round trips that have nothing to do with what it was asked. Waits one and a half of them
        for each, and `time_out_s` at most; some servers send none.
        """
        if self.tls is None or self.tls.version != _TLS_1_3:
            return
        # Connecting takes a second longer where a SYN was lost; the handshake is a round trip too.
        round_trip_s = self.handshake_rtt_s or min(self.connect_s, self.tls_s or self.connect_s)
        with contextlib.suppress(TimeoutError, OSError):  # an error is told at the next step
            async with asyncio.timeout(time_out_s):
                for _ in range(_TICKETS):
                    async with asyncio.timeout(_PATIENCE_ROUND_TRIPS * round_trip_s):
                        self._incoming.write(await self._take())
                    self._confirm()

    async def send(self, content: bytes) -> None:
        """Send all of it.

        Raises:
            OSError: what the network said.
        """
        if self._connection is None or not content:
            await self._put(content)
            return
        connection = self._connection
        await self._until_done(lambda: connection.write(content))

    async def receive(self) -> bytes:
        """The next bytes, as many as there are; empty at the end.

        Raises:
            OSError: what the network said; `ssl.SSLError` when what came is not TLS.
        """
        if self._connection is None:
            return await self._take()
        connection, received = self._connection, bytearray()
        try:
            await self._until_done(lambda: received.extend(connection.read(_RECEIVE_BYTES_MAX)))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            # Many servers close without the alert of RFC 8446 section 6.1. Whether all had come, HTTP and DNS know.
            self.has_ended = True
        return bytes(received)

    def close(self) -> None:
        """Let go of it at once."""
        self._sock.close()

    async def _until_done(self, step: Callable[[], object]) -> None:
        """Repeat a step of the TLS engine, carrying bytes for it, until it wants no more.

        A step that has what it needs must not be taken twice: it is over when it returns.
        """
        while True:
            try:
                step()
            except ssl.SSLWantReadError:
                await self._put(self._outgoing.read())
                content = await self._take()
                self._incoming.write(content) if content else self._incoming.write_eof()
            else:
                await self._put(self._outgoing.read())
                return

    async def _put(self, content: bytes) -> None:
        if content:
            await asyncio.get_running_loop().sock_sendall(self._sock, content)
            self._usage.sent_bytes += len(content)

    async def _take(self) -> bytes:
        """What the kernel has, and when it came."""
        # Whoever always has more to say must not keep the loop, and with it every time-out, from running.
        await asyncio.sleep(0)
        while True:
            try:
                content, ancillary, _, _ = self._sock.recvmsg(_RECEIVE_BYTES_MAX, _ANCILLARY_BYTES)
                break
            except BlockingIOError:
                self._confirm()
                await until_readable(self._sock)
        read = now()
        self.has_ended = not content
        self.received_bytes += len(content)
        self._usage.received_bytes += len(content)
        if content:
            self.arrived_ns = arrival_ns(self._opened, stamp_of(ancillary), read)
        return content

    def _confirm(self) -> None:
        """Acknowledge now what came, instead of up to 40 ms later: a server that waits for that would seem slow."""
        with contextlib.suppress(OSError):
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


async def open_channel(
    link: Link, version: IpVersion, address: str, port: int, time_out_s: float, usage: ByteCount
) -> Channel:
    """A connection over `link`.

    Raises:
        MeasurementFailedError: (connect, ...).
        NotRunError: the link is down or has no address of this IP version.
    """
    channel = Channel(link.socket(version, socket.SOCK_STREAM), usage)
    try:
        await channel.connect(address, port, time_out_s)
    except BaseException:
        channel.close()
        raise
    return channel


async def until_readable(sock: socket.socket) -> None:
    """Wait until there is something to read, an error included. Whoever calls has the time-out."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock)


def arrival_ns(since: Moment, stamp_ns: int | None, read: Moment) -> int:
    """When something arrived that was read at `read`, on the monotonic clock.

    By the kernel's stamp, which does not know that Python was late; by the moment of reading when there is no stamp or
    a clock was stepped since `since`, a moment before it arrived.
    """
    passed_ns = None if stamp_ns is None else delay_ns(since, stamp_ns, read)
    return read.monotonic_ns if passed_ns is None else min(since.monotonic_ns + passed_ns, read.monotonic_ns)


def blame_link(link: Link, error: MeasurementFailedError) -> MeasurementFailedError:
    """A failure while the link itself went away is the link's, whatever the socket noticed of it."""
    if link.is_up() or error.failure.kind is FailureKind.LINK_LOST:
        return error
    return MeasurementFailedError(error.failure.operation, FailureKind.LINK_LOST, "the link went down meanwhile")


@contextlib.contextmanager
def lost_after(operation: Operation, *, has_begun: bool) -> Iterator[None]:
    """A link that is down before anything was sent says nothing; one that goes down after that was lost: a result.

    Raises:
        MeasurementFailedError: (`operation`, link_lost), once it `has_begun`.
        NotRunError: before that, and whatever else keeps a measurement from running.
    """
    try:
        yield
    except NotRunError as error:
        if not has_begun or error.not_run.reason is not NotRunReason.LINK_DOWN:
            raise
        raise MeasurementFailedError(operation, FailureKind.LINK_LOST, error.not_run.detail) from error


def _timed_out(operation: Operation, what: str, time_out_s: float) -> MeasurementFailedError:
    return MeasurementFailedError(operation, FailureKind.TIMED_OUT, f"{what} within {time_out_s:g} s")
