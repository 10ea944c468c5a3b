"""`round_trip`: delay, its variation, loss, duplication and reordering between the link and a peer.

STAMP (RFC 8762) by default, where the peer's own time is taken out of the delay and loss can be told apart by way;
ICMP echo for peers that answer nothing better; the opening of TCP connections for those that answer no ping.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec

from probe.flows.dns.query import resolve_host
from probe.flows.echo import delays, icmp
from probe.flows.echo.engine import Echo, EchoProtocol, prepare
from probe.flows.echo.routes import raise_if_no_way
from probe.flows.echo.series import Plan, Series, raise_if_failed
from probe.flows.echo.stamp import PACKET_BYTES, StampProtocol
from probe.flows.echo.tcp_connect import WAITING_MAX, Connect
from probe.flows.faults import failed
from probe.links import Link
from probe.messages import Operation, Peer
from probe.tasks.base import Context, Load, Parameters, TaskType, Values
from probe.tasks.fit import Misfit, MisfitError, peer_misfits

# Two tries at a resolver. A name is resolved once per series, before the first packet.
RESOLVE_TIME_OUT_S = 5.0
# Opening a socket and leaving the event loop, on a busy host.
MARGIN_S = 1.0
# 1500 bytes of Ethernet less the headers of IPv6 and UDP: never fragmented at home.
PAYLOAD_BYTES_MAX = 1452
# A series is one row, and tells nothing before its end: what goes on for longer is several series.
SERIES_S_MAX: Final = 3600.0


class RoundTripParameters(Parameters, frozen=True):
    """How to measure.

    `interval_s` is the mean distance of packets (RFC 3432; each gap differs a little), `time_out_s` the time after
    which a packet counts as lost (Tmax of RFC 6673). `payload_bytes` stands for the UDP payload (authenticated STAMP
    sends 112 at least) or what follows the ICMP header; a SYN has none.
    """

    method: Literal["stamp", "icmp", "tcp"] = "stamp"
    ip_version: Literal[4, 6] = 4
    # Ten thousand bound what is kept of a series to some megabytes, and suffice to see a loss of 0.1 %.
    packets: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 10
    # A hundred packets per second is what a measurement may do to a line without being a load test.
    interval_s: Annotated[float, msgspec.Meta(ge=0.01, le=60)] = 0.1
    time_out_s: Annotated[float, msgspec.Meta(gt=0, le=60)] = 3.0
    payload_bytes: Annotated[int, msgspec.Meta(ge=PACKET_BYTES, le=PAYLOAD_BYTES_MAX)] = PACKET_BYTES

    def __post_init__(self) -> None:
        """Bound the series' length, and the connections that a dead peer would leave waiting."""
        longest_s = self.plan().duration_s_max()
        if longest_s > SERIES_S_MAX:
            problem = f"a series may last {SERIES_S_MAX:g} s at most, and this one could last {longest_s:g} s"
            raise MisfitError(Misfit("packets", problem, "lower packets or interval_s"))
        waiting = min(self.packets, self.time_out_s / self.interval_s)
        if self.method == "tcp" and waiting > WAITING_MAX:
            problem = f"by tcp at most {WAITING_MAX} connections may wait at once"
            interval_s = self.time_out_s / WAITING_MAX
            raise MisfitError(Misfit("interval_s", problem, "lower time_out_s, or raise interval_s", interval_s))

    def plan(self) -> Plan:
        """The series."""
        return Plan(packets=self.packets, interval_s=self.interval_s, time_out_s=self.time_out_s)


class RoundTripValues(Values, frozen=True):
    """What came back. Lost is what was sent and neither received nor refused.

    Attributes:
        packets_sent: what the kernel took; SYNs with `tcp`, the kernel's own repetitions not counted.
        packets_received: of these, answered within `time_out_s`.
        packets_refused: of these, answered by RST, which proves no delay; `tcp` alone.
        packets_duplicated: answers beyond the first (RFC 5560); absent with `tcp`, where the kernel swallows them.
        packets_reordered: answered after one that was sent later (RFC 4737 section 3.3).
        packets_lost_forward: of the packets up to the last answered one, lost on the way to the peer. This and the next
            two are absent unless the peer counts (a stateful STAMP reflector).
        packets_lost_backward: of the same, lost on the way back.
        packets_lost_unattributed: lost after the last answered one: on which way nobody knows.
        loss_bursts: runs of losses (RFC 3357 loss periods).
        loss_burst_max_packets: the longest of them.
        loss_distance_median_packets: from one loss to the next (RFC 3357); absent with fewer than two.
        delays_rejected: answers whose delay was not used because a clock was stepped.
        delay_min_s: the delays are of what was received, less the time that a STAMP reflector says it kept the packet.
            Absent when nothing was.
        delay_p95_s: the smallest delay that 95 % do not exceed (RFC 2330).
        pdv_s: packet delay variation, p95 - minimum (RFC 5481).
        ipdv_mean_abs_s: inter-packet delay variation: the mean step between neighbours (RFC 3393).
        stamped: the worst clock that a delay was read from: `kernel_both` (the kernel stamped sending and receiving),
            `kernel_receive`, `user`, or with `tcp` always `kernel_tcp`.
        authenticated: whether STAMP's authenticated mode vouched for every answer.
        replies_not_authentic: what came from the peer's address without the right HMAC; authenticated mode alone.
    """

    packets_sent: int
    packets_received: int
    packets_reordered: int
    delays_rejected: int
    packets_duplicated: int | None = None
    packets_refused: int | None = None
    packets_lost_forward: int | None = None
    packets_lost_backward: int | None = None
    packets_lost_unattributed: int | None = None
    loss_bursts: int | None = None
    loss_burst_max_packets: int | None = None
    loss_distance_median_packets: float | None = None
    delay_min_s: float | None = None
    delay_median_s: float | None = None
    delay_p95_s: float | None = None
    delay_max_s: float | None = None
    delay_mean_s: float | None = None
    pdv_s: float | None = None
    ipdv_mean_abs_s: float | None = None
    stamped: str | None = None
    authenticated: bool = False
    replies_not_authentic: int | None = None


@dataclass(frozen=True, slots=True)
class _Target:
    """Where to measure to, and by what key."""

    link: Link
    host: str
    peer: Peer
    key: bytes | None


async def measure(context: Context, parameters: RoundTripParameters) -> RoundTripValues:
    """Measure once.

    Ten packets sent and none back is a measurement: `packets_received` is 0.

    Raises:
        MeasurementFailedError: the name has no address; the kernel took none of the packets (send), or no route leads
            to the peer and nothing came back (send); nothing came back but an error, such as a refusal because nobody
            listens at the peer's port, or the next hop does not answer for its address (receive); the link went away
            meanwhile, or its address (`link_lost`). By `tcp` all but the name are of `connect`.
        NotRunError: the link is down, ICMP echo is not allowed here, or the peer's STAMP key is missing.
    """
    link, peer = context.need_link(), context.need_peer()
    key = context.stamp_key(peer) if parameters.method == "stamp" else None
    host = await resolve_host(link, peer.host, parameters.ip_version, RESOLVE_TIME_OUT_S, context.usage)
    target = _Target(link, host, peer, key)
    if parameters.method == "tcp":
        return await _by_tcp(parameters, target)
    return await _by_echo(context, parameters, target)


async def _by_tcp(parameters: RoundTripParameters, target: _Target) -> RoundTripValues:
    def open_socket() -> socket.socket:
        return target.link.socket(parameters.ip_version, socket.SOCK_STREAM)

    series = await Connect(open_socket, (target.host, target.peer.http_port), parameters.plan()).run()
    _raise_if_no_way(series, parameters, target, Operation.CONNECT, Operation.CONNECT)
    raise_if_failed(series, target.link.is_up, Operation.CONNECT, Operation.CONNECT)
    values = values_of(series)
    return msgspec.structs.replace(
        values,
        packets_duplicated=None,
        packets_refused=len(series.refused_sequences),
        stamped="kernel_tcp" if series.arrivals else None,
    )


async def _by_echo(context: Context, parameters: RoundTripParameters, target: _Target) -> RoundTripValues:
    sock, protocol = _open(context, parameters, target)
    with sock:
        try:
            prepare(sock)
            # ICMP has no ports, and its sockets take no other port than 0.
            sock.connect((target.host, target.peer.stamp_port if parameters.method == "stamp" else 0))
        except OSError as error:
            raise failed(Operation.SEND, error) from error
        series = await Echo(sock, protocol, parameters.plan(), context.usage).run()
    _raise_if_no_way(series, parameters, target, Operation.SEND, Operation.RECEIVE)
    raise_if_failed(series, target.link.is_up)
    values = values_of(series)
    if not isinstance(protocol, StampProtocol) or target.key is None:
        return values
    return msgspec.structs.replace(values, authenticated=True, replies_not_authentic=protocol.not_authentic)


def _open(context: Context, parameters: RoundTripParameters, target: _Target) -> tuple[socket.socket, EchoProtocol]:
    if parameters.method == "icmp":
        return icmp.open_echo(target.link, parameters.ip_version, parameters.payload_bytes)
    sock = target.link.socket(parameters.ip_version, socket.SOCK_DGRAM)
    return sock, StampProtocol(context.clock.reading(), parameters.payload_bytes, target.key)


def _raise_if_no_way(
    series: Series, parameters: RoundTripParameters, target: _Target, sending: Operation, answering: Operation
) -> None:
    """Before what the sockets met of it, which depends on how long the kernel took to tell them."""
    if not series.arrivals and not series.lost_link() and target.link.is_up():
        raise_if_no_way(target.link, parameters.ip_version, target.host, sending, answering)


def values_of(series: Series) -> RoundTripValues:
    """What a series says."""
    counts, delay = delays.count(series.arrivals), delays.summarise(series.arrivals)
    split = delays.split_loss(series.sent_sequences, series.arrivals)
    not_lost = {arrival.sequence for arrival in series.arrivals} | series.refused_sequences
    pattern = delays.loss_pattern(series.sent_sequences, not_lost)
    return RoundTripValues(
        packets_sent=series.sent,
        packets_received=counts.received,
        packets_duplicated=counts.duplicated,
        packets_reordered=counts.reordered,
        packets_lost_forward=None if split is None else split.forward,
        packets_lost_backward=None if split is None else split.backward,
        packets_lost_unattributed=None if split is None else split.unattributed,
        loss_bursts=pattern.bursts,
        loss_burst_max_packets=pattern.burst_max_packets,
        loss_distance_median_packets=pattern.distance_median_packets,
        delays_rejected=counts.delays_rejected,
        delay_min_s=delay.min_s,
        delay_median_s=delay.median_s,
        delay_p95_s=delay.p95_s,
        delay_max_s=delay.max_s,
        delay_mean_s=delay.mean_s,
        pdv_s=delay.pdv_s,
        ipdv_mean_abs_s=delay.ipdv_mean_abs_s,
        stamped=None if series.stamped is None else series.stamped.name.lower(),
    )


TASK = TaskType(
    name="round_trip",
    # 1: STAMP with kernel receive stamps. 2: stamps of sending too, where the device has them: delays became shorter by
    # the way through the sender's own kernel, some hundredths of a millisecond on a fast host.
    version=2,
    parameters=RoundTripParameters,
    values=RoundTripValues,
    measure=measure,
    misfits=lambda parameters, peer: peer_misfits(peer, parameters.ip_version),
    load=Load.LIGHT,
    time_out_s=lambda parameters: RESOLVE_TIME_OUT_S + parameters.plan().duration_s_max() + MARGIN_S,
    baseline_fields=("delay_min_s", "delay_median_s", "delay_p95_s", "pdv_s"),
)
