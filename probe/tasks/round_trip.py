"""`round_trip`: delay, its variation, loss, duplication and reordering between the link and a peer.

STAMP (RFC 8762) by default, where the peer's own time is taken out of the delay and loss can be told apart by way;
ICMP echo for peers that answer nothing better.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from probe.flows import delays, icmp
from probe.flows.delays import Arrival
from probe.flows.dns import resolve_host
from probe.flows.echo import FIRST_SEQUENCE, Echo, EchoProtocol, Plan, Series, prepare, raise_if_failed
from probe.flows.faults import failed
from probe.flows.stamp import PACKET_BYTES, StampProtocol
from probe.links import Link
from probe.messages import Operation
from probe.tasks.base import Context, Load, Parameters, TaskType, Values

# Two tries at a resolver. A name is resolved once per series, before the first packet.
RESOLVE_TIME_OUT_S = 5.0
# Opening a socket and leaving the event loop, on a busy host.
MARGIN_S = 1.0
# 1500 bytes of Ethernet less the headers of IPv6 and UDP: never fragmented at home.
PAYLOAD_BYTES_MAX = 1452


class RoundTripParameters(Parameters, frozen=True):
    """How to measure.

    `interval_s` is the mean distance of packets (RFC 3432; each gap differs a little), `time_out_s` the time after
    which a packet counts as lost (Tmax of RFC 6673). `payload_bytes` stands for the UDP payload or what follows the
    ICMP header.
    """

    method: Literal["stamp", "icmp"] = "stamp"
    ip_version: Literal[4, 6] = 4
    packets: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 10
    # A hundred packets per second is what a measurement may do to a line without being a load test.
    interval_s: Annotated[float, msgspec.Meta(ge=0.01, le=60)] = 0.1
    time_out_s: Annotated[float, msgspec.Meta(gt=0, le=60)] = 3.0
    payload_bytes: Annotated[int, msgspec.Meta(ge=PACKET_BYTES, le=PAYLOAD_BYTES_MAX)] = PACKET_BYTES

    def plan(self) -> Plan:
        """The series."""
        return Plan(packets=self.packets, interval_s=self.interval_s, time_out_s=self.time_out_s)


class RoundTripValues(Values, frozen=True):
    """What came back.

    Delays are of the packets that arrived, without the time that a STAMP reflector says it kept them; absent when
    none arrived. `delay_p95_s` is the smallest delay that 95 % do not exceed (RFC 2330), `pdv_s` is p95 - minimum
    (RFC 5481), `ipdv_mean_abs_s` the mean step between neighbours (RFC 3393). `delays_rejected` counts replies
    whose delay was not used because a clock was stepped. Of the packets up to the last answered one,
    `packets_lost_forward` went missing on the way to the peer and `packets_lost_backward` on the way back; absent
    unless the peer counts (a stateful STAMP reflector).
    """

    packets_sent: int
    packets_received: int
    packets_duplicated: int
    packets_reordered: int
    delays_rejected: int
    packets_lost_forward: int | None = None
    packets_lost_backward: int | None = None
    delay_min_s: float | None = None
    delay_median_s: float | None = None
    delay_p95_s: float | None = None
    delay_max_s: float | None = None
    delay_mean_s: float | None = None
    pdv_s: float | None = None
    ipdv_mean_abs_s: float | None = None


async def measure(context: Context, parameters: RoundTripParameters) -> RoundTripValues:
    """Measure once.

    Ten packets sent and none back is a measurement: `packets_received` is 0.

    Raises:
        MeasurementFailedError: the name has no address; the kernel took none of the packets (send); nothing came
            back but an error, such as a refusal because nobody listens at the peer's port (receive); the link went
            away meanwhile (`link_lost`).
        NotRunError: the link is down, or ICMP echo is not allowed here.
    """
    link, peer = context.need_link(), context.need_peer()
    address = await resolve_host(link, peer.host, parameters.ip_version, RESOLVE_TIME_OUT_S)
    series = await _exchange(context, parameters, link, (address, peer.stamp_port))
    raise_if_failed(series, link.is_up)
    return values_of(series.sent, series.arrivals)


async def _exchange(context: Context, parameters: RoundTripParameters, link: Link, address: tuple[str, int]) -> Series:
    sock, protocol = _open(context, parameters, link)
    with sock:
        try:
            prepare(sock)
            # ICMP has no ports, and its sockets take no other port than 0.
            sock.connect(address if parameters.method == "stamp" else (address[0], 0))
        except OSError as error:
            raise failed(Operation.SEND, error) from error
        return await Echo(sock, protocol, parameters.plan(), context.usage).run()


def _open(context: Context, parameters: RoundTripParameters, link: Link) -> tuple[socket.socket, EchoProtocol]:
    if parameters.method == "icmp":
        return icmp.open_echo(link, parameters.ip_version, parameters.payload_bytes)
    sock = link.socket(parameters.ip_version, socket.SOCK_DGRAM)
    return sock, StampProtocol(context.clock.reading(), parameters.payload_bytes)


def values_of(packets_sent: int, arrivals: Sequence[Arrival]) -> RoundTripValues:
    """What a series says."""
    counts, delay = delays.count(arrivals), delays.summarise(arrivals)
    lost = delays.split_loss(arrivals, FIRST_SEQUENCE)
    return RoundTripValues(
        packets_sent=packets_sent,
        packets_received=counts.received,
        packets_duplicated=counts.duplicated,
        packets_reordered=counts.reordered,
        delays_rejected=counts.delays_rejected,
        packets_lost_forward=None if lost is None else lost.forward,
        packets_lost_backward=None if lost is None else lost.backward,
        delay_min_s=delay.min_s,
        delay_median_s=delay.median_s,
        delay_p95_s=delay.p95_s,
        delay_max_s=delay.max_s,
        delay_mean_s=delay.mean_s,
        pdv_s=delay.pdv_s,
        ipdv_mean_abs_s=delay.ipdv_mean_abs_s,
    )


TASK = TaskType(
    name="round_trip",
    # 1: STAMP with kernel receive stamps.
    version=1,
    parameters=RoundTripParameters,
    values=RoundTripValues,
    measure=measure,
    load=Load.LIGHT,
    time_out_s=lambda parameters: RESOLVE_TIME_OUT_S + parameters.plan().duration_s_max() + MARGIN_S,
    baseline_fields=("delay_min_s", "delay_median_s", "delay_p95_s", "pdv_s"),
)
