"""Task `dns`: how long a resolver takes for one name, and what it says.

One question by UDP over the link, repeated once, by TCP when the answer was cut short (RFC 1035, RFC 7766). That the
name has no such record is a value (`answers` = 0); that the resolver knows no such name, refuses or is silent is a
failure.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Final, Literal

import msgspec

from probe.config import split_host_port
from probe.flows.dns import Answer, Server, query, reachable_resolvers
from probe.flows.dns_message import check_rcode
from probe.links import Link
from probe.tasks.base import Context, Load, Parameters, TaskType, Values

_PORT: Final = 53
# A question without its name: header 12, root and first length 2, type and class 4 (RFC 1035 section 4.1).
_QUESTION_BYTES: Final = 18
# Starting, and the TCP question after a cut answer.
_MARGIN_S: Final = 1.0
# An answer has few addresses; a resolver that sends hundreds must not fill the database.
_ADDRESSES_MAX: Final = 16

# Labels of letters, digits, hyphens and underscores (RFC 1035 section 2.3.1, RFC 2782), 253 characters in all.
FullName = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9_-]{1,63}\.?$", max_length=253
    ),
]


class DnsParameters(Parameters, frozen=True):
    """What to ask, and whom. Without `resolver` (an address, or address:port) the link's own first one is asked."""

    name: FullName = "vnnic.vn"
    record_type: Literal["A", "AAAA"] = "A"
    resolver: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    time_out_s: Annotated[float, msgspec.Meta(gt=0, le=10)] = 2.0
    tries: Annotated[int, msgspec.Meta(ge=1, le=4)] = 2

    def __post_init__(self) -> None:
        """Refuse a resolver that is a name: it would itself have to be resolved."""
        if self.resolver is not None:
            split_host_port(self.resolver, _PORT)


class DnsValues(Values, frozen=True):
    """What the resolver said.

    `response_time_s` is that of the try that was answered, from the kernel's receive stamp; `answers` counts the
    addresses, `addresses` has the first of them, sorted, joined by spaces.
    """

    response_time_s: float
    rcode: str
    answers: int
    used_tcp: bool
    tries: int
    resolver: str
    addresses: str = ""


async def measure(context: Context, parameters: DnsParameters) -> DnsValues:
    """Ask once."""
    link = context.need_link()
    server = _server(link, parameters)
    question_bytes = _QUESTION_BYTES + len(parameters.name)
    context.usage.sent_bytes += question_bytes
    answer = await query(link, server, parameters.name, parameters.record_type, parameters.time_out_s, parameters.tries)
    context.usage.sent_bytes += question_bytes * (answer.tries - 1 + answer.used_tcp)
    context.usage.received_bytes += answer.received_bytes
    check_rcode(answer.rcode, answer.server)
    return _values(answer)


def _server(link: Link, parameters: DnsParameters) -> Server:
    if parameters.resolver is None:
        return reachable_resolvers(link)[0]
    return split_host_port(parameters.resolver, _PORT)


def _values(answer: Answer) -> DnsValues:
    ordered = sorted(answer.addresses, key=lambda text: ipaddress.ip_address(text).packed)
    return DnsValues(
        response_time_s=answer.response_time_s,
        rcode=answer.rcode,
        answers=len(answer.addresses),
        used_tcp=answer.used_tcp,
        tries=answer.tries,
        resolver=answer.server,
        addresses=" ".join(ordered[:_ADDRESSES_MAX]),
    )


def _time_out_s(parameters: DnsParameters) -> float:
    """Each try may take its time twice: over UDP, then over TCP."""
    return parameters.time_out_s * parameters.tries * 2 + _MARGIN_S


def _targets(parameters: DnsParameters) -> tuple[str, ...]:
    return () if parameters.resolver is None else (split_host_port(parameters.resolver, _PORT)[0],)


TASK = TaskType(
    name="dns",
    targets=_targets,
    version=1,
    parameters=DnsParameters,
    values=DnsValues,
    measure=measure,
    load=Load.LIGHT,
    time_out_s=_time_out_s,
    needs_peer=False,
    baseline_fields=("response_time_s",),
)
