"""Name resolution over one link: its own resolvers, over sockets bound to it, never the host's getaddrinfo.

UDP with a repeat, TCP when the answer was cut short (RFC 7766 section 5). Each try has a new random id and a new
random source port; only the asked server's address is listened to, and only the asked question is read (RFC 5452).
"""

from __future__ import annotations

import ipaddress
import math
import time
from dataclasses import replace
from typing import Final

from probe.errors import MeasurementFailedError, NotRunError
from probe.flows.dns.exchange import Answer, Patience, Server, ask_by_datagram, version_of
from probe.flows.dns.message import Question, RecordType, Wishes, check_rcode
from probe.flows.http.channel import ByteCount, Tally, blame_link, lost_after
from probe.links import IpVersion, Link
from probe.messages import FailureKind, NotRunReason, Operation

__all__ = ["Answer", "Server", "query", "question_for", "reachable_resolvers", "resolve_host"]

# The C library waits longer (5 s); a probe that resolves before each test has less patience for a dead resolver.
TRY_TIME_OUT_S: Final = 2.0
_RECORD_TYPE: Final[dict[int, RecordType]] = {4: "A", 6: "AAAA"}
_PLAIN: Final = Wishes()


async def resolve_host(link: Link, host: str, version: IpVersion, time_out_s: float, usage: ByteCount) -> str:
    """Find the address of `host` with the link's own resolvers; an address passes through.

    Each resolver is asked in turn, twice around, until one knows, or until `time_out_s` is over. That a name does not
    exist is final. `usage` is told what it cost.

    Raises:
        MeasurementFailedError: (resolve, ...) no resolver knew it within `time_out_s`; (resolve, link_lost) the link
            went away after the first had been asked.
        NotRunError: `host` is an address of the other IP version, or no name (`bad_parameters`); the link is down.
    """
    literal = _as_literal(host, version)
    if literal is not None:
        return literal
    deadline_s = time.monotonic() + time_out_s
    problem: MeasurementFailedError | None = None
    for server in reachable_resolvers(link) * 2:
        if time.monotonic() >= deadline_s:
            break
        with lost_after(Operation.RESOLVE, has_begun=problem is not None):
            try:
                return await _first_address(link, server, host, version, deadline_s, usage)
            except MeasurementFailedError as error:
                if error.failure.kind in {FailureKind.NAME_NOT_FOUND, FailureKind.NO_ANSWER}:
                    raise
                problem = error
    if problem is None:
        raise MeasurementFailedError(Operation.RESOLVE, FailureKind.TIMED_OUT, f"no time to resolve {host}")
    raise blame_link(link, problem) from problem


async def query(
    link: Link,
    server: Server,
    name: str,
    record_type: RecordType,
    time_out_s: float,
    tries: int = 1,
    *,
    wishes: Wishes = _PLAIN,
    usage: ByteCount | None = None,
    until_s: float = math.inf,
) -> Answer:
    """Ask one server for one record, each try for `time_out_s` at most over UDP, and again over TCP.

    All of it ends at `until_s` on the monotonic clock.

    Raises:
        MeasurementFailedError: (resolve, timed_out | refused | malformed | ...) what ended the last try; (resolve,
            link_lost) the link went away after the first.
        NotRunError: the link is down or has no address to ask from (`link_down`); no such name (`bad_parameters`).
    """
    for attempt in range(1, tries + 1):
        question = question_for(name, record_type, wishes)
        with lost_after(Operation.RESOLVE, has_begun=attempt > 1):
            try:
                patience = Patience(time_out_s, until_s)
                answer = await ask_by_datagram(link, server, question, patience, usage or Tally())
            except MeasurementFailedError:
                if attempt == tries or time.monotonic() >= until_s:
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
    usable = tuple(server for server in resolvers if _has_source(link, version_of(server[0])))
    if not usable:
        link.source_address(version_of(resolvers[0][0]))  # says which address is missing
    return usable


def _has_source(link: Link, version: IpVersion) -> bool:
    try:
        link.source_address(version)
    except NotRunError:
        return False
    return True


async def _first_address(
    link: Link, server: Server, host: str, version: IpVersion, until_s: float, usage: ByteCount
) -> str:
    answer = await query(link, server, host, _RECORD_TYPE[version], TRY_TIME_OUT_S, usage=usage, until_s=until_s)
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


def question_for(name: str, record_type: RecordType, wishes: Wishes = _PLAIN) -> Question:
    """A new question.

    Raises:
        NotRunError: no such name can be (`bad_parameters`).
    """
    try:
        return Question(name, record_type, wishes)
    except ValueError as error:
        raise NotRunError(NotRunReason.BAD_PARAMETERS, str(error)) from error
