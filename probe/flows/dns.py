"""Name resolution over one link: its own resolvers, over sockets bound to it, never the host's getaddrinfo.

UDP with a repeat, TCP when the answer was cut short (RFC 7766 section 5). Each try has a new random id and a new
random source port; only the asked server's address is listened to, and only the asked question is read (RFC 5452).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct
import time
from dataclasses import dataclass, replace
from typing import Final

from probe.clock import NS_PER_S
from probe.errors import MeasurementFailedError, NotRunError
from probe.flows.dns_message import NotTheAnswerError, Question, RecordType, Reply, UnreadableError, check_rcode
from probe.flows.faults import failed
from probe.links import IpVersion, Link
from probe.messages import FailureKind, NotRunReason, Operation

Server = tuple[str, int]

# The C library waits longer (5 s); a probe that resolves before each test has less patience for a dead resolver.
TRY_TIME_OUT_S: Final = 2.0
# The largest answer over UDP without EDNS is 512 bytes (RFC 1035 section 4.2.1); some servers do not care.
_DATAGRAM_BYTES_MAX: Final = 4096
_SO_TIMESTAMPNS_NEW: Final = 64  # asm-generic/socket.h: 16 bytes on 32-bit and 64-bit programs alike
_STAMP: Final = struct.Struct("qq")  # struct __kernel_timespec
_LENGTH: Final = struct.Struct("!H")  # RFC 1035 section 4.2.2: the prefix of a message over TCP
# A stamp is wall time. When the wall clock moved by more than this against the monotonic one, it is not used.
_CLOCK_SHIFT_NS_MAX: Final = 500_000
_RECORD_TYPE: Final[dict[int, RecordType]] = {4: "A", 6: "AAAA"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a resolver said.

    `response_time_s` runs from the sending of the try that was answered to the arrival of its last answer; `tries`
    counts the questions that were sent for it.
    """

    rcode: str
    addresses: tuple[str, ...]
    response_time_s: float
    used_tcp: bool
    tries: int
    server: str
    received_bytes: int


async def resolve_host(link: Link, host: str, version: IpVersion, time_out_s: float) -> str:
    """Find the address of `host` with the link's own resolvers; an address passes through.

    Each resolver is asked in turn, twice around, until one knows. That a name does not exist is final.

    Raises:
        MeasurementFailedError: (resolve, ...) no resolver knew it within `time_out_s`.
        NotRunError: `host` is an address of the other IP version, or no name (`bad_parameters`); the link is down.
    """
    literal = _as_literal(host, version)
    if literal is not None:
        return literal
    deadline_s = time.monotonic() + time_out_s
    problem: MeasurementFailedError | None = None
    for server in reachable_resolvers(link) * 2:
        try_time_out_s = min(TRY_TIME_OUT_S, deadline_s - time.monotonic())
        if try_time_out_s <= 0:
            break
        try:
            return await _first_address(link, server, host, version, try_time_out_s)
        except MeasurementFailedError as error:
            if error.failure.kind in {FailureKind.NAME_NOT_FOUND, FailureKind.NO_ANSWER}:
                raise
            problem = error
    raise problem or MeasurementFailedError(Operation.RESOLVE, FailureKind.TIMED_OUT, f"no time to resolve {host}")


async def query(
    link: Link, server: Server, name: str, record_type: RecordType, time_out_s: float, tries: int = 1
) -> Answer:
    """Ask one server for one record, each try for `time_out_s` at most.

    Raises:
        MeasurementFailedError: (resolve, timed_out | refused | malformed | ...) what ended the last try.
        NotRunError: the link is down or has no address to ask from (`link_down`); no such name (`bad_parameters`).
    """
    version = _version_of(server[0])
    for attempt in range(1, tries + 1):
        question = _question(name, record_type)
        try:
            answer = await _ask(link, version, server, question, time_out_s)
        except MeasurementFailedError:
            if attempt == tries:
                raise
        else:
            return replace(answer, tries=attempt)
    raise ValueError("a question needs one try at least")


def reachable_resolvers(link: Link) -> tuple[Server, ...]:
    """The link's resolvers that it has an address to ask from.

    Raises:
        MeasurementFailedError: (resolve, address_unavailable) there is none.
        NotRunError: the link is down.
    """
    resolvers = link.resolvers()
    if not resolvers:
        raise MeasurementFailedError(
            Operation.RESOLVE, FailureKind.ADDRESS_UNAVAILABLE, f"link {link.name} has no resolver"
        )
    usable = tuple(server for server in resolvers if _has_source(link, _version_of(server[0])))
    if not usable:
        link.source_address(_version_of(resolvers[0][0]))  # says which address is missing
    return usable


def _has_source(link: Link, version: IpVersion) -> bool:
    try:
        link.source_address(version)
    except NotRunError:
        return False
    return True


async def _first_address(link: Link, server: Server, host: str, version: IpVersion, time_out_s: float) -> str:
    answer = await query(link, server, host, _RECORD_TYPE[version], time_out_s)
    check_rcode(answer.rcode, server[0])
    if not answer.addresses:
        raise MeasurementFailedError(
            Operation.RESOLVE, FailureKind.NO_ANSWER, f"{host} has no {_RECORD_TYPE[version]} record"
        )
    return answer.addresses[0]


def _as_literal(host: str, version: IpVersion) -> str | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if address.version != version:
        raise NotRunError(NotRunReason.BAD_PARAMETERS, f"{host} is not an IPv{version} address")
    return str(address)


def _version_of(address: str) -> IpVersion:
    return 6 if ipaddress.ip_address(address).version == 6 else 4  # noqa: PLR2004 - the two versions of IP


def _question(name: str, record_type: RecordType) -> Question:
    try:
        return Question(name, record_type)
    except ValueError as error:
        raise NotRunError(NotRunReason.BAD_PARAMETERS, str(error)) from error


async def _ask(link: Link, version: IpVersion, server: Server, question: Question, time_out_s: float) -> Answer:
    """One try over UDP and, when the answer does not fit, over TCP."""
    with link.socket(version, socket.SOCK_DGRAM) as sock:
        began_ns = time.monotonic_ns()
        try:
            reply, response_time_s = await _over_udp(sock, server, question, time_out_s)
        except OSError as error:
            raise failed(Operation.RESOLVE, error) from error
    used_tcp = reply.truncated
    if used_tcp:
        reply = await _over_tcp(link, version, server, question, time_out_s)
        response_time_s = (time.monotonic_ns() - began_ns) / NS_PER_S
    return Answer(
        rcode=reply.rcode,
        addresses=reply.addresses,
        response_time_s=response_time_s,
        used_tcp=used_tcp,
        tries=1,
        server=server[0],
        received_bytes=reply.wire_bytes,
    )


async def _over_udp(sock: socket.socket, server: Server, question: Question, time_out_s: float) -> tuple[Reply, float]:
    """Send and wait. Datagrams that answer something else are passed over.

    Raises:
        OSError: TimeoutError when nothing came, or what the network said (ICMP).
        MeasurementFailedError: (resolve, malformed) only rubbish came.
    """
    sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS_NEW, 1)
    sock.connect(server)  # from now on the kernel drops what comes from anyone else
    sent = _Moment.now()
    sock.send(question.wire)
    deadline_s = time.monotonic() + time_out_s
    rubbish: UnreadableError | None = None
    while True:
        try:
            await _until_readable(sock, deadline_s - time.monotonic())
        except TimeoutError:
            if rubbish is not None:
                detail = f"{server[0]} sent no DNS message: {rubbish}"
                raise MeasurementFailedError(Operation.RESOLVE, FailureKind.MALFORMED, detail) from None
            raise TimeoutError(f"{server[0]} did not answer within {time_out_s:g} s") from None
        try:
            wire, response_time_s = _receive(sock, sent)
            return question.read(wire), response_time_s
        except UnreadableError as error:
            rubbish = error
        except (NotTheAnswerError, BlockingIOError):  # the latter: woken for a datagram with a wrong checksum
            continue


async def _over_tcp(link: Link, version: IpVersion, server: Server, question: Question, time_out_s: float) -> Reply:
    loop = asyncio.get_running_loop()
    with link.socket(version, socket.SOCK_STREAM) as sock:
        try:
            async with asyncio.timeout(time_out_s):
                await loop.sock_connect(sock, server)
                await loop.sock_sendall(sock, _LENGTH.pack(len(question.wire)) + question.wire)
                (length_bytes,) = _LENGTH.unpack(await _read_exactly(sock, _LENGTH.size))
                reply = question.read(await _read_exactly(sock, length_bytes))
        except TimeoutError as error:
            detail = f"{server[0]} did not answer over TCP within {time_out_s:g} s"
            raise MeasurementFailedError(Operation.RESOLVE, FailureKind.TIMED_OUT, detail) from error
        except (OSError, EOFError) as error:
            raise failed(Operation.RESOLVE, error) from error
        except (UnreadableError, NotTheAnswerError) as error:
            detail = f"{server[0]} sent no answer over TCP: {error}"
            raise MeasurementFailedError(Operation.RESOLVE, FailureKind.MALFORMED, detail) from error
    return reply


async def _read_exactly(sock: socket.socket, length_bytes: int) -> bytes:
    loop = asyncio.get_running_loop()
    received = b""
    while len(received) < length_bytes:
        part = await loop.sock_recv(sock, length_bytes - len(received))
        if not part:
            raise EOFError("the resolver closed the connection in the middle of its answer")
        received += part
    return received


async def _until_readable(sock: socket.socket, time_out_s: float) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        async with asyncio.timeout(time_out_s):
            await ready.wait()
    finally:
        loop.remove_reader(sock)


@dataclass(frozen=True, slots=True)
class _Moment:
    """One instant on both clocks."""

    wall_ns: int
    monotonic_ns: int

    @classmethod
    def now(cls) -> _Moment:
        return cls(wall_ns=time.time_ns(), monotonic_ns=time.monotonic_ns())


def _receive(sock: socket.socket, sent: _Moment) -> tuple[bytes, float]:
    """One datagram, and how long after `sent` it came: by the kernel's stamp where the clocks allow."""
    wire, ancillary, _, _ = sock.recvmsg(_DATAGRAM_BYTES_MAX, socket.CMSG_SPACE(_STAMP.size))
    now = _Moment.now()
    return wire, _passed_ns(sent, now, _stamp_ns(ancillary)) / NS_PER_S


def _passed_ns(sent: _Moment, now: _Moment, stamp_ns: int | None) -> int:
    """Python may be late to read; the kernel's stamp is not, unless the wall clock was moved meanwhile."""
    monotonic_ns = now.monotonic_ns - sent.monotonic_ns
    shift_ns = (now.wall_ns - sent.wall_ns) - monotonic_ns
    if stamp_ns is None or abs(shift_ns) > _CLOCK_SHIFT_NS_MAX or stamp_ns < sent.wall_ns:
        return monotonic_ns
    return min(stamp_ns - sent.wall_ns, monotonic_ns)


def _stamp_ns(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS_NEW) and len(content) >= _STAMP.size:
            seconds, nanoseconds = _STAMP.unpack_from(content)
            return int(seconds) * NS_PER_S + int(nanoseconds)
    return None
