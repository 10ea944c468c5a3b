"""Task `ipv6`: what the line's IPv6 is worth, step by step, beside its IPv4 at the same time.

Address, route, name, reachability, delay, path MTU: the first step that fails is the `state`. Broken IPv6 is a measured
value. Only when neither family brings an answer is it a failure: then it is the peer or the whole line that is dead.

Capacity is not measured here, it is heavy: schedule two `capacity` actions, with `ip_version` 4 and 6, in one schedule.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Iterator
from typing import Annotated, Final, Literal

import msgspec

from probe.errors import NotRunError
from probe.flows.echo import icmp
from probe.flows.echo.delays import summarise
from probe.flows.echo.engine import EchoProtocol, Plan
from probe.flows.echo.routes import neighbour_error
from probe.flows.echo.series import Series
from probe.flows.echo.stamp import PACKET_BYTES, StampProtocol
from probe.flows.ipv6.addresses import InterfaceAddress, Origin, addresses_of
from probe.flows.ipv6.dual_stack import (
    LOOKUP_S_MAX,
    Connected,
    ask_resolver,
    connect,
    difference_s,
    echo_in_turns,
    has_route,
    has_source,
    literal_version,
    look_up,
    paired_delays_s,
    together,
    usable_versions,
)
from probe.flows.ipv6.family import ANYWHERE, Family, State, local_state, raise_if_dead, raise_if_lost
from probe.flows.ipv6.happy_eyeballs import Winner, winner_of
from probe.flows.ipv6.path_mtu import PathMtu, find
from probe.flows.ipv6.sized_echoes import SizedEchoes
from probe.links import IpVersion, Link
from probe.messages import Peer
from probe.tasks.base import Context, Load, Parameters, TaskType, Values
from probe.tasks.fit import PEER_FIELD, Misfit, host_misfits, refuse

AddressKind = Literal["global", "unique_local", "none"]

_VERSIONS: Final[tuple[IpVersion, ...]] = (6, 4)
# Behind a NAT64 an IPv4 host looks like this (RFC 6052); it says little of IPv6 beyond the translator.
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
# A lost packet must not pass for one too large: of 5 % loss, one size in 8,000 is misjudged.
_MTU_TRIES: Final = 3
# Some 15 sizes, most of them answered at once.
_MTU_LIMIT_S: Final = 20.0
_MARGIN_S: Final = 2.0

Host = Annotated[str, msgspec.Meta(min_length=1, max_length=253)]


class Ipv6Parameters(Parameters, frozen=True):
    """What to ask.

    `host` is measured instead of the peer's own host (its ports are the peer's), `host_v6` for IPv6 alone, where one
    name does not have both addresses. `interval_s` is the distance of packets of one family; those of the other come
    half-way between. A packet may be on its way for `time_out_s`, and a connection may take so long. `mtu` looks for
    the path MTU: one full packet for each family of a healthy line, up to 16 sizes of three packets for a broken one.
    """

    method: Literal["stamp", "icmp"] = "stamp"
    host: Host | None = None
    host_v6: Host | None = None
    packets: Annotated[int, msgspec.Meta(ge=1, le=100)] = 10
    interval_s: Annotated[float, msgspec.Meta(ge=0.02, le=5)] = 0.2
    time_out_s: Annotated[float, msgspec.Meta(gt=0, le=10)] = 2.0
    mtu: bool = True

    def plan(self) -> Plan:
        """The series of one family."""
        return Plan(packets=self.packets, interval_s=self.interval_s, time_out_s=self.time_out_s)


class Ipv6Values(Values, frozen=True):
    """What was found. Absent is what could not be tried, or brought nothing.

    `state` is the first step at which IPv6 fails, `state_v4` that of IPv4: `no_address` on the link, `no_route` from
    it, `no_dns` (no resolver answered the question for this family), `no_record` (the host has no such address),
    `unreachable` (nothing came back, neither echo nor TCP), `mtu_black_hole` (small packets come back, large ones
    vanish without a word), `works`.

    `address_kind` is the best kind of usable address, `address_origin` how it came; `addresses_global` and
    `addresses_temporary` count. `default_route` is whether the link leads to the whole IPv6 Internet.
    `resolver_v6_answers` is whether the link's first resolver with an IPv6 address answers over it, absent when it
    has none. `nat64` says that the host's IPv6 address is a translator's (RFC 6052).

    Delays are of echo packets that took turns; `delay_difference_s` is the median by IPv6 less that by IPv4, of the
    `pairs` of neighbours that both came back: above zero, IPv6 is slower. `connect_*_s` is the time to a TCP connection
    with the peer's HTTP port, repeated SYNs included; `segment_*_bytes` the payload of its full segments. `winner` is
    the family that a program would use (RFC 8305).

    `path_mtu_*_bytes` is the largest IP packet that came back, of at most 1500 or what the interface can send.
    `error_*` is how the family failed; `refused` beside `works` says that the host gave refusals alone.
    """

    state: State
    state_v4: State
    address_kind: AddressKind
    addresses_global: int
    addresses_temporary: int
    default_route: bool
    packets_sent_v6: int = 0
    packets_sent_v4: int = 0
    packets_received_v6: int = 0
    packets_received_v4: int = 0
    pairs: int = 0
    nat64: bool = False
    address_origin: Origin | None = None
    resolver_v6_answers: bool | None = None
    dns_v6_s: float | None = None
    dns_v4_s: float | None = None
    delay_median_v6_s: float | None = None
    delay_median_v4_s: float | None = None
    delay_difference_s: float | None = None
    connect_v6_s: float | None = None
    connect_v4_s: float | None = None
    winner: Winner | None = None
    path_mtu_v6_bytes: int | None = None
    path_mtu_v4_bytes: int | None = None
    mtu_black_hole_v6: bool | None = None
    mtu_black_hole_v4: bool | None = None
    segment_v6_bytes: int | None = None
    segment_v4_bytes: int | None = None
    error_v6: str | None = None
    error_v4: str | None = None


async def measure(context: Context, parameters: Ipv6Parameters) -> Ipv6Values:
    """Measure both families once.

    Raises:
        MeasurementFailedError: neither family brought an answer: (resolve, ...) when no address was found for either,
            else (receive, ...) as IPv4 failed, or IPv6 where the link has nothing else; or the link went away
            (receive, link_lost).
        NotRunError: the link is down, or has no address of any family, as the measurement begins; ICMP echo is not
            allowed here, or the peer's STAMP key is missing (`tool_missing`).
    """
    link, peer = context.need_link(), context.need_peer()
    refuse(_misfits(parameters, peer))
    usable = usable_versions(link)
    families = await _looked_up(context, parameters, link, peer)
    for version, family in families.items():
        # Look-ups take up to some seconds, in which an address can go.
        has_address = version in usable and has_source(link, version)
        family.state = local_state(link, version, has_address, family.lookup)
    resolver_v6_answers, _ = await together(
        _resolver_v6_answers(context, parameters, link, peer, usable),
        _exchange(context, parameters, link, peer, families),
    )
    raise_if_dead(families, link.is_up)
    if parameters.mtu:
        await _find_mtus(context, parameters, link, peer, families)
        raise_if_lost(link.is_up)
    return _values(link, families, resolver_v6_answers)


async def _looked_up(context: Context, parameters: Ipv6Parameters, link: Link, peer: Peer) -> dict[IpVersion, Family]:
    hosts = {version: _host(parameters, peer, version) for version in _VERSIONS}
    lookups = await together(*(look_up(link, hosts[version], version, context.usage) for version in _VERSIONS))
    return {version: Family(lookup) for version, lookup in zip(_VERSIONS, lookups, strict=True)}


def _misfits(parameters: Ipv6Parameters, peer: Peer | None) -> Iterator[Misfit]:
    """An IPv4 address says nothing of IPv6."""
    for field, host in (("host", parameters.host), ("host_v6", parameters.host_v6)):
        yield from host_misfits(field, host)
    if peer is None:
        return
    host = _host(parameters, peer, 6)
    if literal_version(host) == 4:  # noqa: PLR2004 - an IP version
        field = "host_v6" if parameters.host_v6 is not None else "host" if parameters.host is not None else PEER_FIELD
        problem = f"{host} is an IPv4 address, which says nothing of IPv6"
        yield Misfit(field, problem, "give `host` a name with both addresses, or `host_v6` one with an IPv6 address")


def _host(parameters: Ipv6Parameters, peer: Peer, version: IpVersion) -> str:
    host = parameters.host or peer.host
    return parameters.host_v6 or host if version == 6 else host  # noqa: PLR2004 - an IP version


async def _exchange(
    context: Context, parameters: Ipv6Parameters, link: Link, peer: Peer, families: dict[IpVersion, Family]
) -> None:
    """Echoes in turns, then one connection each, for the families that have come so far."""
    ready = {version: family.address() for version, family in families.items() if family.state is None}
    if not ready:
        return
    port = peer.stamp_port if parameters.method == "stamp" else 0

    def open_echo(version: IpVersion) -> tuple[socket.socket, EchoProtocol]:
        return _open(context, parameters, link, version)

    targets = {version: (address, port) for version, address in ready.items()}
    series = await echo_in_turns(open_echo, targets, parameters.plan(), context.usage)
    # At the same time: what one family's connection does to the line the other's does too.
    connections = await together(
        *(
            connect(link, version, (address, peer.http_port), parameters.time_out_s)
            for version, address in ready.items()
        )
    )
    for version, connected in zip(ready, connections, strict=True):
        families[version].take(series[version], connected)
        if families[version].state == "unreachable" and link.is_up():
            with contextlib.suppress(NotRunError):  # its address has gone meanwhile, which is a state of its own
                source = link.source_address(version)
                families[version].own_error = neighbour_error(link.interface, source, ready[version])


def _open(
    context: Context, parameters: Ipv6Parameters, link: Link, version: IpVersion
) -> tuple[socket.socket, EchoProtocol]:
    if parameters.method == "icmp":
        return icmp.open_echo(link, version, PACKET_BYTES)
    key = context.stamp_key(context.need_peer())
    return link.socket(version, socket.SOCK_DGRAM), StampProtocol(context.clock.reading(), key=key)


async def _find_mtus(
    context: Context, parameters: Ipv6Parameters, link: Link, peer: Peer, families: dict[IpVersion, Family]
) -> None:
    """Both at once, each over a socket of its own."""
    echoing = {version: family for version, family in families.items() if family.echoes()}
    found = await together(
        *(_find_mtu(context, parameters, link, peer, version, family) for version, family in echoing.items())
    )
    for family, mtu in zip(echoing.values(), found, strict=True):
        family.take_mtu(mtu)


async def _find_mtu(
    context: Context, parameters: Ipv6Parameters, link: Link, peer: Peer, version: IpVersion, family: Family
) -> PathMtu | None:
    try:
        sock, protocol = _open(context, parameters, link, version)
    except NotRunError:  # the link was up when the measurement began
        return None

    key = context.stamp_key(peer)

    def protocol_of(payload_bytes: int) -> EchoProtocol:
        if isinstance(protocol, icmp.IcmpProtocol):
            return icmp.IcmpProtocol(version, payload_bytes, raw=sock.type == socket.SOCK_RAW)
        return StampProtocol(context.clock.reading(), payload_bytes, key)

    port = peer.stamp_port if parameters.method == "stamp" else 0
    with sock:
        try:
            sock.connect((family.address(), port))
            echoes = SizedEchoes(sock, version, protocol_of, context.usage, _MTU_TRIES, family.mtu_wait_s())
            async with asyncio.timeout(_MTU_LIMIT_S):
                return await find(echoes.ask, echoes.full_bytes(link.interface))
        except OSError:  # also when the time is over: then it is not known
            return None


async def _resolver_v6_answers(
    context: Context, parameters: Ipv6Parameters, link: Link, peer: Peer, usable: tuple[IpVersion, ...]
) -> bool | None:
    """Whether the link's own resolver can be asked over IPv6; absent when it has no such address, or no name to ask."""
    servers = [server for server in link.resolvers() if ipaddress.ip_address(server[0]).version == 6]  # noqa: PLR2004
    host = _host(parameters, peer, 6)
    if not servers or literal_version(host) is not None:
        return None
    if 6 not in usable:  # noqa: PLR2004 - an IP version
        return False
    lookup = await ask_resolver(link, servers[0], host, 6, context.usage)
    return lookup.problem != "no_dns"


def _values(link: Link, families: dict[IpVersion, Family], resolver_v6_answers: bool | None) -> Ipv6Values:
    ipv6, ipv4 = families[6], families[4]
    series_6, series_4 = ipv6.series or Series(), ipv4.series or Series()
    pairs = paired_delays_s(series_6, series_4)
    owned = [address for address in addresses_of(link.interface) if address.is_usable]
    best = _best(owned)
    connected_6, connected_4 = ipv6.connected or Connected(), ipv4.connected or Connected()
    return Ipv6Values(
        state=ipv6.state or "works",
        state_v4=ipv4.state or "works",
        address_kind="none" if best is None or best.kind == "link_local" else best.kind,
        address_origin=None if best is None or best.kind == "link_local" else best.origin,
        addresses_global=sum(address.kind == "global" for address in owned),
        addresses_temporary=sum(address.origin == "temporary" for address in owned),
        default_route=ipv6.state != "no_address" and has_route(link, 6, ANYWHERE),
        resolver_v6_answers=resolver_v6_answers,
        nat64=_is_nat64(ipv6.lookup.address),
        dns_v6_s=ipv6.lookup.took_s,
        dns_v4_s=ipv4.lookup.took_s,
        packets_sent_v6=series_6.sent,
        packets_sent_v4=series_4.sent,
        packets_received_v6=len({arrival.sequence for arrival in series_6.arrivals}),
        packets_received_v4=len({arrival.sequence for arrival in series_4.arrivals}),
        pairs=len(pairs),
        delay_median_v6_s=summarise(series_6.arrivals).median_s,
        delay_median_v4_s=summarise(series_4.arrivals).median_s,
        delay_difference_s=difference_s(pairs),
        connect_v6_s=connected_6.took_s,
        connect_v4_s=connected_4.took_s,
        winner=winner_of(ipv6.attempt(), ipv4.attempt()),
        path_mtu_v6_bytes=None if ipv6.mtu is None else ipv6.mtu.path_mtu_bytes,
        path_mtu_v4_bytes=None if ipv4.mtu is None else ipv4.mtu.path_mtu_bytes,
        mtu_black_hole_v6=None if ipv6.mtu is None else ipv6.mtu.is_black_hole,
        mtu_black_hole_v4=None if ipv4.mtu is None else ipv4.mtu.is_black_hole,
        segment_v6_bytes=connected_6.segment_bytes,
        segment_v4_bytes=connected_4.segment_bytes,
        error_v6=ipv6.error(),
        error_v4=ipv4.error(),
    )


def _best(owned: list[InterfaceAddress]) -> InterfaceAddress | None:
    """A global address before a unique local one; a stable one before one that changes every day."""
    ranks = {"global": 0, "unique_local": 1, "link_local": 2}
    return min(owned, key=lambda address: (ranks[address.kind], address.origin == "temporary"), default=None)


def _is_nat64(address: str | None) -> bool:
    return address is not None and ipaddress.ip_address(address) in _NAT64


def _time_out_s(parameters: Ipv6Parameters) -> float:
    echo_s = parameters.plan().duration_s_max() + parameters.interval_s
    mtu_s = _MTU_LIMIT_S if parameters.mtu else 0.0
    return LOOKUP_S_MAX * 2 + echo_s + parameters.time_out_s + mtu_s + _MARGIN_S


def _targets(parameters: Ipv6Parameters) -> tuple[str, ...]:
    return tuple(host for host in (parameters.host, parameters.host_v6) if host is not None)


TASK = TaskType(
    name="ipv6",
    # 1: echoes in turns, path MTU by echoes with "don't fragment".
    version=1,
    parameters=Ipv6Parameters,
    values=Ipv6Values,
    measure=measure,
    load=Load.LIGHT,
    time_out_s=_time_out_s,
    targets=_targets,
    misfits=_misfits,
    baseline_fields=("delay_median_v6_s", "delay_difference_s", "path_mtu_v6_bytes"),
)
