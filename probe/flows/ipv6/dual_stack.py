"""One host by both versions of IP, side by side: its addresses, a connection, and echoes that alternate.

What is compared is measured in the same way, within the same seconds: packets of the two families take turns, so that
a line that is busy for a moment is busy for both.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import random
import socket
import statistics
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeVar

from probe.clock import NS_PER_S
from probe.errors import MeasurementFailedError, NotRunError
from probe.flows.dns.message import RecordType, check_rcode
from probe.flows.dns.query import Server, query, reachable_resolvers
from probe.flows.echo.delays import first_arrivals
from probe.flows.echo.engine import Echo, EchoProtocol, Plan, prepare
from probe.flows.echo.series import ByteCount, Series
from probe.flows.error_queue import ask_for_errors, next_error
from probe.flows.faults import kind_of
from probe.links import IpVersion, Link
from probe.messages import FailureKind, NotRunReason

_RECORD_TYPE: Final[dict[int, RecordType]] = {4: "A", 6: "AAAA"}
_TRY_TIME_OUT_S: Final = 1.5
# Losses come in bursts: after two lost questions it is too early to say that nobody answers.
_TRIES: Final = 3
_RESOLVERS_MAX: Final = 2
# For one more try than there are: a cut answer is asked for again over TCP.
_RESOLVER_S_MAX: Final = _TRY_TIME_OUT_S * (_TRIES + 1)
LOOKUP_S_MAX: Final = _RESOLVER_S_MAX * _RESOLVERS_MAX

OpenEcho = Callable[[IpVersion], tuple[socket.socket, EchoProtocol]]
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Lookup:
    """What DNS says of one family: an address, or why there is none.

    `took_s` is the response time of the question that was answered, absent for literal addresses. `known_s` is how long
    after the start of the look-up the address was known, questions that nobody answered included; absent without one.
    """

    address: str | None = None
    problem: Literal["no_record", "no_dns"] | None = None
    kind: FailureKind | None = None
    took_s: float | None = None
    known_s: float | None = None


@dataclass(frozen=True, slots=True)
class Connected:
    """What became of one TCP connection: how long it took, or how it failed.

    `reporter` is who reported the failure by ICMP; absent when the host itself refused (RST) or nobody said anything.
    `segment_bytes` is the payload that its full segments have: what is missing from 1440 (IPv6) or 1460, less 12 for
    time stamps, somebody on the path or the other end has asked to leave out.
    """

    took_s: float | None = None
    kind: FailureKind | None = None
    segment_bytes: int | None = None
    reporter: str | None = None


async def together(*steps: Coroutine[Any, Any, Found]) -> list[Found]:
    """Take these steps at once. When one fails, the others are ended before its failure goes on."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(step) for step in steps]
    except BaseExceptionGroup as failures:
        # The others were cancelled, so the first is why; unless two failed at once, and then either will do.
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def look_up(link: Link, host: str, version: IpVersion, usage: ByteCount) -> Lookup:
    """Ask the link's own resolvers for the host's address of one family.

    A link that has no address to ask from, any more or at all, leaves the question without an answer (`no_dns`).

    Raises:
        NotRunError: `host` is no name (`bad_parameters`).
    """
    literal = literal_version(host)
    if literal is not None:
        return Lookup(address=host, known_s=0.0) if literal == version else Lookup(problem="no_record")
    began_s = time.monotonic()
    lookup = Lookup(problem="no_dns", kind=FailureKind.ADDRESS_UNAVAILABLE)
    try:
        resolvers = reachable_resolvers(link)[:_RESOLVERS_MAX]
    except (MeasurementFailedError, NotRunError):
        return lookup
    for server in resolvers:
        lookup = await ask_resolver(link, server, host, version, usage)
        if lookup.problem != "no_dns":
            break
    return lookup if lookup.address is None else replace(lookup, known_s=time.monotonic() - began_s)


async def ask_resolver(link: Link, server: Server, host: str, version: IpVersion, usage: ByteCount) -> Lookup:
    """Ask one resolver. That it knows of no such record is an answer.

    Raises:
        NotRunError: `host` is no name (`bad_parameters`).
    """
    until_s = time.monotonic() + _RESOLVER_S_MAX
    try:
        answer = await query(
            link, server, host, _RECORD_TYPE[version], _TRY_TIME_OUT_S, _TRIES, usage=usage, until_s=until_s
        )
        check_rcode(answer.rcode, server[0])
    except MeasurementFailedError as error:
        kind = error.failure.kind
        return Lookup(problem="no_record" if kind == FailureKind.NAME_NOT_FOUND else "no_dns", kind=kind)
    except NotRunError as error:
        if error.not_run.reason != NotRunReason.LINK_DOWN:
            raise
        return Lookup(problem="no_dns", kind=FailureKind.ADDRESS_UNAVAILABLE)
    if not answer.addresses:
        return Lookup(problem="no_record", took_s=answer.response_time_s)
    return Lookup(address=answer.addresses[0], took_s=answer.response_time_s)


def literal_version(host: str) -> int | None:
    """The version of IP of an address; absent for names."""
    try:
        return ipaddress.ip_address(host).version
    except ValueError:
        return None


def has_route(link: Link, version: IpVersion, address: str) -> bool:
    """Whether the kernel has a route of this link to an address: not without an address to go from. Nothing is sent."""
    try:
        with link.socket(version, socket.SOCK_DGRAM) as sock:
            sock.connect((address, 9))  # the discard port: any will do
    except (OSError, NotRunError):
        return False
    return True


async def connect(link: Link, version: IpVersion, address: tuple[str, int], time_out_s: float) -> Connected:
    """Open a TCP connection and close it again. The second SYN leaves after one second (RFC 6298)."""
    loop = asyncio.get_running_loop()
    try:
        with link.socket(version, socket.SOCK_STREAM) as sock:
            ask_for_errors(sock)
            began_ns = time.monotonic_ns()
            try:
                async with asyncio.timeout(time_out_s):
                    await loop.sock_connect(sock, address)
            except OSError as error:
                # A firewall's "port unreachable" ends the attempt just as the host's own refusal does (Linux 5.8).
                report = next_error(sock)
                return Connected(kind=kind_of(error), reporter=None if report is None else report.reporter)
            took_s = (time.monotonic_ns() - began_ns) / NS_PER_S
            return Connected(took_s=took_s, segment_bytes=sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG))
    except OSError as error:
        return Connected(kind=kind_of(error))
    except NotRunError:  # it was up when the measurement began
        return Connected(kind=FailureKind.LINK_LOST)


async def echo_in_turns(
    open_echo: OpenEcho, addresses: Mapping[IpVersion, tuple[str, int]], plan: Plan, usage: ByteCount
) -> dict[IpVersion, Series]:
    """Send a series to each address, the second half an interval after the first; chance says which goes first.

    On a mobile line the first packet wakes the radio up: it must not always be the same family's. A family whose
    address has gone sends nothing.

    Raises:
        NotRunError: echo is not allowed here, or its key is missing (`tool_missing`).
    """
    versions = list(addresses)
    random.shuffle(versions)
    series = {version: Series(send_error=OSError(errno.EADDRNOTAVAIL, "its address has gone")) for version in versions}
    with contextlib.ExitStack() as opened:
        echoes: dict[IpVersion, tuple[socket.socket, EchoProtocol]] = {}
        for version in versions:
            try:
                sock, protocol = open_echo(version)
            except NotRunError as error:
                if error.not_run.reason != NotRunReason.LINK_DOWN:
                    raise
            else:
                echoes[version] = opened.enter_context(sock), protocol
        done = await together(
            *(
                _echo_after(turn * plan.interval_s / 2, *echo, addresses[version], plan, usage)
                for turn, (version, echo) in enumerate(echoes.items())
            )
        )
    return series | dict(zip(echoes, done, strict=True))


async def _echo_after(
    wait_s: float, sock: socket.socket, protocol: EchoProtocol, address: tuple[str, int], plan: Plan, usage: ByteCount
) -> Series:
    await asyncio.sleep(wait_s)
    try:
        prepare(sock)
        sock.connect(address)
    except OSError as error:
        return Series(send_error=error)
    return await Echo(sock, protocol, plan, usage).run()


def paired_delays_s(ipv6: Series, ipv4: Series) -> list[tuple[float, float]]:
    """Delay by IPv6 and delay by IPv4 of each pair of neighbours that were both answered."""
    first, second = _delays(ipv6), _delays(ipv4)
    return [(first[number] / NS_PER_S, second[number] / NS_PER_S) for number in sorted(first.keys() & second.keys())]


def difference_s(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Median delay by IPv6 less median delay by IPv4, over the same moments; absent without any.

    The median of the differences would follow every packet's own jitter: on a line that varies by 30 ms, ten pairs
    were 4 ms off that way, and 1 ms this way.
    """
    if not pairs:
        return None
    return statistics.median(pair[0] for pair in pairs) - statistics.median(pair[1] for pair in pairs)


def _delays(series: Series) -> dict[int, int]:
    arrivals = first_arrivals(series.arrivals)
    return {arrival.sequence: arrival.delay_ns for arrival in arrivals if arrival.delay_ns is not None}


def has_source(link: Link, version: IpVersion) -> bool:
    """Whether the link has an address of this family now, and is up."""
    try:
        link.source_address(version)
    except NotRunError:
        return False
    return True


def usable_versions(link: Link) -> tuple[IpVersion, ...]:
    """The families that the link has an address of.

    Raises:
        NotRunError: it is down, or has none at all (`link_down`).
    """
    found: list[IpVersion] = []
    problem: NotRunError | None = None
    versions: tuple[IpVersion, ...] = (6, 4)
    for version in versions:
        try:
            link.source_address(version)
        except NotRunError as error:
            problem = error
        else:
            found.append(version)
    if problem is not None and not found:
        raise problem
    return tuple(found)
