"""Task `capacity`: how much TCP payload the line carries in one direction, by several streams against an HTTP peer.

Two figures, never mixed: `capacity_bps` is the rate of the steady part (RFC 6349, TR-143's full-load window, BEREC
BoR (17) 112), `whole_transfer_bps` is all bytes over all the time, ramp included, as QCVN 34:2022/BTTTT defines the
speed of a sample.
"""

from __future__ import annotations

import socket
import time
from typing import Annotated, Final, Literal

import msgspec

from probe.errors import NotRunError
from probe.flows.bulk import Transfer
from probe.flows.dns import resolve_host
from probe.flows.stream import CONNECT_TIME_OUT_S, REQUEST_TIME_OUT_S, Order
from probe.flows.tcp import transfer
from probe.messages import NotRunReason, Peer
from probe.tasks.base import Context, Load, Parameters, Sample, TaskType, Values

RESOLVE_TIME_OUT_S: Final = 5.0
# Thread start, the last sample, closing the sockets.
_MARGIN_S: Final = 2.0


class CapacityParameters(Parameters, frozen=True):
    """One direction of one line.

    `full` measures until the figure is known; `capped` spends `max_bytes` at most, for lines that are paid by volume.
    `max_duration_s` counts from the first request.
    """

    direction: Literal["download", "upload"] = "download"
    ip_version: Literal[4, 6] = 4
    mode: Literal["full", "capped"] = "full"
    max_duration_s: Annotated[float, msgspec.Meta(ge=1, le=60)] = 10.0
    max_bytes: Annotated[int, msgspec.Meta(ge=100_000)] | None = None
    streams_max: Annotated[int, msgspec.Meta(ge=1, le=16)] = 16

    def __post_init__(self) -> None:
        """Refuse a cap without a size, and a size without a cap."""
        if (self.mode == "capped") != (self.max_bytes is not None):
            raise ValueError("`max_bytes` belongs to mode `capped`, and only to it")


class CurveSample(Sample, frozen=True):
    """The rate of 100 ms; `offset_s` is its end."""

    rate_bps: float


class CapacityValues(Values, frozen=True):
    """What one transfer showed.

    `capacity_bps` is the steady TCP payload rate; with `lower_bound` the end came before the plateau and the line may
    do more. `confidence_ratio` is the half width of the 95 % interval over the mean. `stopped_by` is one of
    confident, steady_time, max_duration, max_bytes. Bytes and times are of the payload and from the first request on.
    `streams` were alive at the end. `delay_min_s` is the smallest round trip that TCP saw. `retransmitted_bytes` is
    known for uploads. `congestion_control` is the sender's algorithm: for downloads the peer's, if it says so.
    `cpu_ratio` is the share of one core that the transfer used: near 1, the probe was measured and not the line.
    """

    capacity_bps: float
    whole_transfer_bps: float
    lower_bound: bool
    stopped_by: str
    streams: int
    streams_failed: int
    transferred_bytes: int
    transfer_s: float
    steady_s: float
    cpu_ratio: float
    confidence_ratio: float | None = None
    delay_min_s: float | None = None
    retransmitted_bytes: int | None = None
    congestion_control: str | None = None
    curve: tuple[CurveSample, ...] = ()


async def measure(context: Context, parameters: CapacityParameters) -> CapacityValues:
    """Transfer once."""
    began_s = time.monotonic()
    link, peer = context.need_link(), context.need_peer()
    if peer.tls:
        raise NotRunError(NotRunReason.TOOL_MISSING, "this agent measures capacity over plain HTTP only")
    version = parameters.ip_version
    address = await resolve_host(link, peer.host, version, RESOLVE_TIME_OUT_S)

    def count(total_bytes: int) -> None:
        if parameters.direction == "download":
            context.usage.received_bytes = total_bytes
        else:
            context.usage.sent_bytes = total_bytes

    def open_socket() -> socket.socket:
        return link.socket(version, socket.SOCK_STREAM)

    done = await transfer(_order(peer, address, parameters), open_socket, count)
    return _values(done, done.began_s - began_s)


def _order(peer: Peer, address: str, parameters: CapacityParameters) -> Order:
    return Order(
        direction=parameters.direction,
        address=address,
        port=peer.http_port,
        host=peer.host,
        path=peer.download_path if parameters.direction == "download" else peer.upload_path,
        max_duration_s=parameters.max_duration_s,
        max_bytes=parameters.max_bytes,
        streams_max=parameters.streams_max,
    )


def _values(done: Transfer, offset_s: float) -> CapacityValues:
    """`offset_s`: when the transfer began, after the result's start."""
    return CapacityValues(
        capacity_bps=done.estimate.capacity_bps,
        whole_transfer_bps=done.whole_transfer_bps,
        lower_bound=done.estimate.is_lower_bound,
        stopped_by=str(done.stopped_by),
        streams=done.streams,
        streams_failed=done.streams_failed,
        transferred_bytes=done.transferred_bytes,
        transfer_s=done.transfer_s,
        steady_s=done.estimate.steady_s,
        cpu_ratio=done.cpu_ratio,
        confidence_ratio=done.estimate.confidence_ratio,
        delay_min_s=done.delay_min_s,
        retransmitted_bytes=done.retransmitted_bytes,
        congestion_control=done.congestion_control,
        curve=tuple(CurveSample(offset_s=offset_s + end_s, rate_bps=rate_bps) for end_s, rate_bps in done.curve),
    )


def _time_out_s(parameters: CapacityParameters) -> float:
    before_s = RESOLVE_TIME_OUT_S + CONNECT_TIME_OUT_S + REQUEST_TIME_OUT_S
    return before_s + parameters.max_duration_s + _MARGIN_S


TASK = TaskType(
    name="capacity",
    version=1,
    parameters=CapacityParameters,
    values=CapacityValues,
    measure=measure,
    load=Load.HEAVY,
    time_out_s=_time_out_s,
    baseline_fields=("capacity_bps", "delay_min_s"),
)
