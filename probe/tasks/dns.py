"""Task `dns`: how long a resolver takes for one name, and what it says.

One question over the link: by UDP, repeated once, by TCP when the answer was cut short (RFC 1035, RFC 7766); or by TCP,
TLS (RFC 7858) or HTTPS (RFC 8484), whose connections are timed apart. That the name has no such record is a value
(`answers` = 0); that the resolver knows no such name, refuses or is silent is a failure.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Final, Literal

import msgspec

from probe.config import split_host_port
from probe.errors import MeasurementFailedError
from probe.flows.dns import message as dns_message
from probe.flows.dns.exchange import Answer, Server
from probe.flows.dns.extras import (
    DNSSEC_QUESTIONS,
    EGRESS_QUESTIONS,
    IDENTITY_QUESTIONS,
    DnssecState,
    dnssec_state,
    egress,
    identity,
)
from probe.flows.dns.message import NO_ERROR, check_rcode
from probe.flows.dns.query import question_for, reachable_resolvers
from probe.flows.dns.session import PORT_OF, Session, Transport, Where, open_session
from probe.flows.http.channel import blame_link, lost_after
from probe.links import Link
from probe.messages import Operation, Peer
from probe.tasks.base import Context, Load, Parameters, TaskType, Values
from probe.tasks.fit import Misfit, MisfitError, no_peer_misfits, version_of_literal

# Starting, and reading the answers.
_MARGIN_S: Final = 1.0
# An answer has few addresses; a resolver that sends hundreds must not fill the database.
_ADDRESSES_MAX: Final = 16
_EXPECTED_MAX: Final = 16
# The longest name, less a random label and its dot (RFC 1035 section 2.3.4).
_RANDOM_BYTES: Final = 8
_VERSION: Final = {"A": 4, "AAAA": 6}
_NAME_CHARACTERS_MAX: Final = 253
# The steps of one try, each with its own time-out: connect, TLS, answer; over UDP the answer, and once more over TCP.
# Over HTTPS the answer is two: its head, and its body.
_STEPS_MAX: Final[dict[Transport, int]] = {"udp": 2, "tcp": 2, "tls": 3, "https": 4}

# Labels of letters, digits, hyphens and underscores (RFC 1035 section 2.3.1, RFC 2782), 253 characters in all.
FullName = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9_-]{1,63}\.?$",
        max_length=_NAME_CHARACTERS_MAX,
    ),
]
HttpPath = Annotated[str, msgspec.Meta(pattern=r"^/[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*$", max_length=256)]


class DnsParameters(Parameters, frozen=True):
    """What to ask, and whom. Without `resolver` (an address, or address:port) the link's own first one is asked.

    Over `tls` and `https` the certificate must name `server_name`, or the resolver's address without it. `random_label`
    puts a new label before the name at each try, so that no cache can answer: for a zone of one's own with a wildcard.
    `dnssec` asks whether the resolver validated, `identify` who it is, `whoami_name` (a name that answers with the
    asker's address) from where it asks; each costs light questions of its own. `expected_addresses` are those that an
    honest answer has.
    """

    name: FullName = "vnnic.vn"
    record_type: Literal["A", "AAAA"] = "A"
    transport: Transport = "udp"
    resolver: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    server_name: FullName | None = None
    https_path: HttpPath = "/dns-query"
    time_out_s: Annotated[float, msgspec.Meta(gt=0, le=10)] = 2.0
    tries: Annotated[int, msgspec.Meta(ge=1, le=4)] = 2
    random_label: bool = False
    dnssec: bool = False
    identify: bool = False
    whoami_name: FullName | None = None
    expected_addresses: Annotated[tuple[str, ...], msgspec.Meta(max_length=_EXPECTED_MAX)] = ()

    def __post_init__(self) -> None:
        """Refuse a resolver that is a name, which would itself have to be resolved, and what cannot be expected."""
        if self.resolver is not None:
            split_host_port(self.resolver, PORT_OF[self.transport])
        for address in self.expected_addresses:
            ipaddress.ip_address(address)
        if self.random_label and len(self.name) + 2 * _RANDOM_BYTES + 1 > _NAME_CHARACTERS_MAX:
            raise MisfitError(Misfit("name", "leaves no room for a random label", "shorten it"))
        versions = {version_of_literal(address) for address in self.expected_addresses}
        wanted = _VERSION[self.record_type]
        if versions and wanted not in versions:
            problem = f"has no IPv{wanted} address, and a record of type {self.record_type} brings no others"
            raise MisfitError(Misfit("expected_addresses", problem, "correct them or the record_type"))


class DnsValues(Values, frozen=True):
    """What the resolver said.

    `response_time_s` is that of the try that was answered, from the question to its last answer by the kernel's receive
    stamp, connecting excluded (but for the TCP question after a cut answer over UDP); `connect_s` and `tls_s` are the
    connection's, absent over UDP. `answers` counts the addresses, `addresses` has the first of them, sorted, joined by
    spaces; `ttl_s` is how long they may still be kept; `answers_expected` says whether all of them were expected,
    absent when none were named. `stray_answers` counts datagrams that answered another question or none: late ones, or
    forged.

    `dnssec_state`: the resolver validated (`authenticated`), the zone has no signatures (`unsigned`), the resolver
    gives signatures and does not validate (`signed_not_validated`), or it refuses what does not validate (`bogus`:
    SERVFAIL, a signed answer when checking is disabled, and SERVFAIL again). `nsid`, `server_id` and `egress` are who
    the resolver is and from where it asks.
    """

    response_time_s: float
    rcode: str
    answers: int
    used_tcp: bool
    tries: int
    resolver: str
    addresses: str = ""
    name: str = ""
    connect_s: float | None = None
    tls_s: float | None = None
    tls_version: str | None = None
    http_version: str | None = None
    certificate_days_left: float | None = None
    ttl_s: int | None = None
    answers_expected: bool | None = None
    stray_answers: int = 0
    dnssec_state: DnssecState | None = None
    nsid: str | None = None
    server_id: str | None = None
    egress: str | None = None


async def measure(context: Context, parameters: DnsParameters) -> DnsValues:
    """Ask, repeat what failed, and then what else is to be known.

    Raises:
        MeasurementFailedError: (resolve, ...) the last try was not answered, or with an error; (connect | tls |
            request | transfer, ...) over a transport that has these; (..., link_lost) the link went away after the
            first try.
        NotRunError: the link is down; no such name can be; this device cannot judge certificates.
    """
    link = context.need_link()
    where = _where(link, parameters)
    dns_message.load()
    attempt, operation = 0, Operation.RESOLVE
    while True:
        attempt += 1
        with lost_after(operation, has_begun=attempt > 1):
            try:
                return await _measure_once(context, link, where, parameters, attempt)
            except _AnsweredError as error:
                raise error.failure from None
            except MeasurementFailedError as error:
                if attempt == parameters.tries or not link.is_up():
                    raise blame_link(link, error) from error
                operation = error.failure.operation


class _AnsweredError(Exception):
    """The resolver did answer, and what it said is a failure: to repeat the question would be pointless."""

    def __init__(self, failure: MeasurementFailedError) -> None:
        super().__init__(str(failure))
        self.failure = failure


async def _measure_once(
    context: Context, link: Link, where: Where, parameters: DnsParameters, attempt: int
) -> DnsValues:
    name = f"{secrets.token_hex(_RANDOM_BYTES)}.{parameters.name}" if parameters.random_label else parameters.name
    question_for(name, parameters.record_type)  # before anything is connected for it
    async with open_session(link, where, context.clock, context.usage) as session:
        answer = await session.ask(question_for(name, parameters.record_type))
        answer = replace(answer, tries=attempt)
        state = await dnssec_state(session, answer, name, parameters.record_type) if parameters.dnssec else None
        try:
            # That a resolver refuses what does not validate is its duty: whoever asks for the state gets values.
            check_rcode(NO_ERROR if state == "bogus" else answer.rcode, answer.server)
        except MeasurementFailedError as error:
            raise _AnsweredError(error) from None
        values = msgspec.structs.replace(_values(answer, session, parameters), dnssec_state=state)
        return await _with_extras(values, session, name, parameters)


async def _with_extras(values: DnsValues, session: Session, name: str, parameters: DnsParameters) -> DnsValues:
    if parameters.identify:
        who = await identity(session, name, parameters.record_type)
        values = msgspec.structs.replace(values, nsid=who.nsid, server_id=who.server_id)
    if parameters.whoami_name is not None:
        values = msgspec.structs.replace(values, egress=await egress(session, parameters.whoami_name))
    return values


def _where(link: Link, parameters: DnsParameters) -> Where:
    return Where(
        server=_server(link, parameters),
        transport=parameters.transport,
        time_out_s=parameters.time_out_s,
        server_name=parameters.server_name,
        https_path=parameters.https_path,
    )


def _server(link: Link, parameters: DnsParameters) -> Server:
    """A resolver of the link is configured for UDP: another transport has a port of its own there."""
    port = PORT_OF[parameters.transport]
    if parameters.resolver is not None:
        return split_host_port(parameters.resolver, port)
    server = reachable_resolvers(link)[0]
    return server if parameters.transport in {"udp", "tcp"} else (server[0], port)


def _values(answer: Answer, session: Session, parameters: DnsParameters) -> DnsValues:
    channel = session.channel
    tls = None if channel is None else channel.tls
    return DnsValues(
        response_time_s=answer.response_time_s,
        rcode=answer.rcode,
        answers=len(answer.addresses),
        used_tcp=answer.used_tcp,
        tries=answer.tries,
        resolver=answer.server,
        addresses=" ".join(_ordered(answer.addresses)[:_ADDRESSES_MAX]),
        name=parameters.name,
        connect_s=None if channel is None else channel.connect_s,
        tls_s=None if channel is None else channel.tls_s,
        tls_version=None if tls is None else tls.version,
        http_version=session.http_version,
        certificate_days_left=None if tls is None else tls.certificate_days_left,
        ttl_s=answer.reply.ttl_s,
        answers_expected=_are_expected(answer.addresses, parameters.expected_addresses),
        stray_answers=answer.strays,
    )


def _ordered(addresses: tuple[str, ...]) -> list[str]:
    return sorted(addresses, key=lambda text: ipaddress.ip_address(text).packed)


def _are_expected(addresses: tuple[str, ...], expected: tuple[str, ...]) -> bool | None:
    """An answer may name some of them, and nothing else."""
    if not expected:
        return None
    wanted = {ipaddress.ip_address(text) for text in expected}
    return bool(addresses) and all(ipaddress.ip_address(text) in wanted for text in addresses)


def _time_out_s(parameters: DnsParameters) -> float:
    """Each step of each try may take its time, and so may every question beside it (over UDP twice: again by TCP)."""
    questions = (
        DNSSEC_QUESTIONS * parameters.dnssec
        + IDENTITY_QUESTIONS * parameters.identify
        + EGRESS_QUESTIONS * (parameters.whoami_name is not None)
    )
    steps = _STEPS_MAX[parameters.transport] * parameters.tries + 2 * questions
    return parameters.time_out_s * steps + _MARGIN_S


def _misfits(_: DnsParameters, peer: Peer | None) -> Iterator[Misfit]:
    """Who is asked is the link's resolver, or `resolver`."""
    return no_peer_misfits(peer, "remove the peer; who is asked is the link's resolver, or `resolver`")


def _targets(parameters: DnsParameters) -> tuple[str, ...]:
    """Whom a question reaches: the resolver, and with a random label the zone's own servers, past every cache.

    A fleet that asked random names of a stranger's zone would be an attack on its servers. A plain name is answered
    from caches and may be any.
    """
    resolver = () if parameters.resolver is None else (split_host_port(parameters.resolver, 1)[0],)
    return (*resolver, parameters.name) if parameters.random_label else resolver


TASK = TaskType(
    name="dns",
    targets=_targets,
    misfits=_misfits,
    version=1,
    parameters=DnsParameters,
    values=DnsValues,
    measure=measure,
    load=Load.LIGHT,
    time_out_s=_time_out_s,
    needs_peer=False,
    baseline_fields=("response_time_s",),
)
