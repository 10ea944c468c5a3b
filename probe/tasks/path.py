"""Task `path`: which routers a packet to the peer passes, and how far away in time each is.

A traceroute whose probes are all of one flow (Augustin et al., "Avoiding traceroute anomalies with Paris traceroute",
IMC 2006), so that routers which balance load send all of them the same way, in this run and in the next one.
"""

from __future__ import annotations

import errno
import socket
import zlib
from typing import Annotated, Final, Literal

import msgspec

from probe.clock import NS_PER_S
from probe.errors import MeasurementFailedError, NotRunError
from probe.flows.dns.query import resolve_host
from probe.flows.echo.routes import raise_if_no_way
from probe.flows.faults import failed
from probe.flows.path.hops import Hop, Unreachable, hash_of, path_of, paths_agree
from probe.flows.path.trace import Trace, prepare
from probe.flows.path.trace_probes import EchoProbes, StampProbes, TraceProbes
from probe.flows.path.traced import EndedBy, Traced, TracePlan, raise_if_failed
from probe.links import Link
from probe.messages import FailureKind, NotRunReason, Operation, Peer
from probe.tasks.base import Context, Load, Parameters, Sample, TaskType, Values
from probe.tasks.fit import peer_misfits

__all__ = ["TASK", "HopSample", "PathParameters", "PathValues", "measure", "paths_agree"]

RESOLVE_TIME_OUT_S: Final = 5.0
# Opening a socket and leaving the event loop, on a busy host.
_MARGIN_S: Final = 2.0
# Outside of what the kernel hands out by itself (ip_local_port_range begins at 32768), and above what services use.
_PORT_MIN: Final = 20_000
_PORTS: Final = 10_000
# When another trace of this probe has the port: the next one is another flow, and the result says which.
_PORT_TRIES: Final = 8
_PROTOCOL: Final = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}


class PathParameters(Parameters, frozen=True):
    """How to trace.

    `udp` sends STAMP packets to the peer's port (authenticated where the peer wants it), `icmp` echo requests. `flow`
    chooses the source port (ICMP: the identifier), so that another one of several equal paths can be looked at; the
    same flow is the same path as long as the network does not change. `silent_hops_max` hops in a row without an answer
    end the trace. A probe not answered within `time_out_s` is not answered.
    """

    method: Literal["udp", "icmp"] = "udp"
    ip_version: Literal[4, 6] = 4
    probes_per_hop: Annotated[int, msgspec.Meta(ge=1, le=10)] = 3
    hops_max: Annotated[int, msgspec.Meta(ge=1, le=30)] = 30
    silent_hops_max: Annotated[int, msgspec.Meta(ge=1, le=10)] = 6
    # Fifty probes of 72 bytes per second: less than a voice call.
    interval_s: Annotated[float, msgspec.Meta(ge=0.005, le=1)] = 0.02
    time_out_s: Annotated[float, msgspec.Meta(ge=0.1, le=5)] = 1.5
    limit_s: Annotated[float, msgspec.Meta(ge=1, le=60)] = 20.0
    flow: Annotated[int, msgspec.Meta(ge=0, le=999)] = 0

    def plan(self) -> TracePlan:
        """The trace."""
        return TracePlan(
            probes_per_hop=self.probes_per_hop,
            hops_max=self.hops_max,
            silent_hops_max=self.silent_hops_max,
            interval_s=self.interval_s,
            time_out_s=self.time_out_s,
            limit_s=self.limit_s,
        )


class HopSample(Sample, frozen=True):
    """One hop. `offset_s` is when its first probe was sent, so that every hop of a trace has a time of its own.

    `address` is who answered, the first in order when several did (`addresses` counts them), absent when nobody did.
    `delay_min_s` is the shortest round trip to that one, and says little of a router that answers only when it has
    time.
    `unreachable` is what a router said that lets nothing through.
    """

    ttl: int
    sent: int
    answers: int
    addresses: int
    address: str | None = None
    delay_min_s: float | None = None
    unreachable: Unreachable | None = None


class PathValues(Values, frozen=True):
    """The path as far as it was seen.

    `path` names who answered at each TTL from 1 on: `*` where nobody did, `a|b` where several did, nothing after the
    last answer. `path_hash` is its hash, absent when nobody answered: equal hashes are equal paths; a router that was
    silent this time makes another hash, so before an event is made of it, `paths_agree` compares the two `path`s with
    `*` as a wildcard, and only paths of the same `source_port` and `destination_port` are to be compared (one flow).
    `hop_count` is how many hops away the destination is, absent when it did not answer; `hops_answered` and
    `hops_silent` count those up to the last answer. `one_address_per_hop` is false when one TTL was answered by several
    routers: the load is balanced by packet, or the path changed meanwhile. `ended_by` says why the trace went no
    further.
    """

    reached: bool
    ended_by: EndedBy
    path: str
    hops_answered: int
    hops_silent: int
    one_address_per_hop: bool
    packets_sent: int
    packets_answered: int
    source_port: int
    destination_port: int | None = None
    path_hash: str | None = None
    hop_count: int | None = None
    delay_min_s: float | None = None
    hops: tuple[HopSample, ...] = ()


async def measure(context: Context, parameters: PathParameters) -> PathValues:
    """Trace once. A path on which nobody answers is a measurement: `hops_answered` is 0.

    Raises:
        MeasurementFailedError: the name has no address (resolve); no probe could be sent, no route leads to the peer,
            or the link went away (send); nobody answered, as the next hop does not answer for its address (receive).
        NotRunError: the link is down; ICMP echo is not allowed here, or the peer's STAMP key is missing
            (`tool_missing`).
    """
    link, peer = context.need_link(), context.need_peer()
    probes = _probes(context, parameters, peer)
    address = await resolve_host(link, peer.host, parameters.ip_version, RESOLVE_TIME_OUT_S, context.usage)
    # ICMP has no ports, and its sockets take no other port than 0.
    port = peer.stamp_port if parameters.method == "udp" else 0
    with _open(link, parameters, address) as sock:
        try:
            prepare(sock)
            sock.connect((address, port))
        except OSError as error:
            raise failed(Operation.SEND, error) from error
        source_port = sock.getsockname()[1]
        traced = await Trace(sock, probes, address, parameters.plan(), context.usage).run()
    raise_if_failed(traced, link.is_up)
    if not traced.hops:
        raise_if_no_way(link, parameters.ip_version, address)
    return values_of(traced, source_port, port or None)


def _probes(context: Context, parameters: PathParameters, peer: Peer) -> TraceProbes:
    if parameters.method == "icmp":
        return EchoProbes(parameters.ip_version)
    return StampProbes(context.clock.reading(), context.stamp_key(peer))


def _open(link: Link, parameters: PathParameters, address: str) -> socket.socket:
    """A socket of the flow's own source port. For ICMP that is the identifier."""
    protocol = _PROTOCOL[parameters.ip_version] if parameters.method == "icmp" else 0
    first = source_port_of(link.name, address, parameters.flow)
    for port in range(first, first + _PORT_TRIES):
        try:
            return link.socket(parameters.ip_version, socket.SOCK_DGRAM, protocol, source_port=port)
        except PermissionError as error:
            raise NotRunError(
                NotRunReason.TOOL_MISSING,
                "ICMP echo is not allowed here: set sysctl net.ipv4.ping_group_range to a range that has the probe's "
                "group, such as `0 2147483647` (it counts for IPv6 too), or trace by UDP",
            ) from error
        except NotRunError as error:
            if not _is_taken(error):
                raise
    raise MeasurementFailedError(Operation.SEND, FailureKind.ADDRESS_UNAVAILABLE, f"ports from {first} on are taken")


def _is_taken(error: NotRunError) -> bool:
    return isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE


def source_port_of(link: str, address: str, flow: int) -> int:
    """The same for the same link, destination and flow, on every probe and after every restart."""
    return _PORT_MIN + zlib.crc32(f"{link} {address} {flow}".encode()) % _PORTS


def values_of(traced: Traced, source_port: int, destination_port: int | None) -> PathValues:
    """What a trace says."""
    path, count = path_of(traced.hops), traced.destination_ttl()
    answered = sum(bool(hop.replies) for hop in traced.hops)
    return PathValues(
        reached=count is not None,
        ended_by=traced.ended_by,
        path=path,
        path_hash=hash_of(path) if path else None,
        hops_answered=answered,
        hops_silent=len(traced.hops) - answered,
        one_address_per_hop=all(len(hop.addresses()) <= 1 for hop in traced.hops),
        packets_sent=traced.sent,
        packets_answered=sum(len(hop.replies) for hop in traced.hops),
        source_port=source_port,
        destination_port=destination_port,
        hop_count=count,
        delay_min_s=None if count is None else _seconds(traced.hops[count - 1].destination_delay_min_ns()),
        hops=tuple(_sample(hop) for hop in traced.hops),
    )


def _sample(hop: Hop) -> HopSample:
    addresses = hop.addresses()
    address = addresses[0] if addresses else None
    return HopSample(
        offset_s=hop.offset_ns / NS_PER_S,
        ttl=hop.ttl,
        sent=hop.sent,
        answers=len(hop.replies),
        addresses=len(addresses),
        address=address,
        delay_min_s=_seconds(hop.delay_min_ns(address)),
        unreachable=hop.unreachable(),
    )


def _seconds(duration_ns: int | None) -> float | None:
    return None if duration_ns is None else duration_ns / NS_PER_S


TASK = TaskType(
    name="path",
    # 1: constant flow, STAMP or echo probes, kernel receive stamps.
    version=1,
    parameters=PathParameters,
    values=PathValues,
    measure=measure,
    misfits=lambda parameters, peer: peer_misfits(peer, parameters.ip_version),
    load=Load.LIGHT,
    time_out_s=lambda parameters: RESOLVE_TIME_OUT_S + parameters.limit_s + _MARGIN_S,
    baseline_fields=("hop_count", "delay_min_s"),
)
