"""Task `capacity`: how much TCP payload the line carries in one direction, by several streams against an HTTP peer.

Two figures, never mixed: `capacity_bps` is the rate of the steady part (RFC 6349, TR-143's full-load window, BEREC
BoR (17) 112), `whole_transfer_bps` is all bytes over all the time, ramp included, as QCVN 34:2022/BTTTT defines the
speed of a sample.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Annotated, Final, Literal

import msgspec

from probe.errors import MeasurementFailedError, NotRunError
from probe.flows.bulk.result import Transfer
from probe.flows.bulk.stream import CONNECT_TIME_OUT_S, REQUEST_TIME_OUT_S, Order
from probe.flows.bulk.transfer import transfer
from probe.flows.bulk.wire import TLS_TIME_OUT_S, TlsTerms
from probe.flows.dns.query import resolve_host
from probe.flows.echo.delays import DelaySummary
from probe.flows.http.channel import blame_link
from probe.flows.load.loaded_delay import IDLE_PLAN, DelayWatch, LoadedDelays, StampFlow, idle_delay
from probe.messages import FailureKind, NotRunReason, Operation, Peer, bulk_protocol
from probe.tasks.base import Context, Load, Parameters, Sample, TaskType, Usage, Values
from probe.tasks.fit import Misfit, MisfitError, peer_misfits

RESOLVE_TIME_OUT_S: Final = 5.0
# Thread start, the last sample, closing the sockets.
_MARGIN_S: Final = 2.0


def _size_misfit(field: str, wanted_mode: str, mode: str, example_bytes: int) -> Misfit:
    """A mode without its size, or a size without its mode."""
    if mode == wanted_mode:
        return Misfit(field, f"mode `{mode}` needs it", "say how many bytes", example_bytes)
    return Misfit(field, f"belongs to mode `{wanted_mode}`, and the mode is `{mode}`", "remove it, or set the mode")


class CapacityParameters(Parameters, frozen=True):
    """One direction of one line.

    `full` measures until the figure is known; `capped` spends `max_bytes` of payload at most, for lines that are paid
    by volume; `file` transfers `file_bytes` to the last one, for figures that are defined so (QCVN 34:2022/BTTTT).
    `max_duration_s` counts from the first request. `loaded_delay` also measures the delay, idle and under this load, on
    a flow of its own: 20 STAMP packets a second, one second more.
    """

    direction: Literal["download", "upload"] = "download"
    ip_version: Literal[4, 6] = 4
    mode: Literal["full", "capped", "file"] = "full"
    max_duration_s: Annotated[float, msgspec.Meta(ge=1, le=60)] = 10.0
    max_bytes: Annotated[int, msgspec.Meta(ge=100_000)] | None = None
    file_bytes: Annotated[int, msgspec.Meta(ge=100_000, le=10_000_000_000)] | None = None
    streams_max: Annotated[int, msgspec.Meta(ge=1, le=16)] = 16
    loaded_delay: bool = False

    def __post_init__(self) -> None:
        """Refuse a mode without its size, and a size without its mode."""
        if (self.mode == "capped") != (self.max_bytes is not None):
            raise MisfitError(_size_misfit("max_bytes", "capped", self.mode, 25_000_000))
        if (self.mode == "file") != (self.file_bytes is not None):
            raise MisfitError(_size_misfit("file_bytes", "file", self.mode, 100_000_000))


class CurveSample(Sample, frozen=True):
    """The rate of 100 ms; `offset_s` is its end."""

    rate_bps: float


class CapacityValues(Values, frozen=True):
    """What one transfer showed.

    `capacity_bps` is the steady TCP payload rate, or that of packet trains; with `lower_bound` the line was never seen
    to be full and may do more. Both without a steady part: `steady_s` is 0. `confidence_ratio` is the half width of the
    95 % interval over the mean. `stopped_by` is one of confident, steady_time, max_duration, max_bytes, whole_file.
    Bytes and times are of the payload and from the first request on.
    `streams` were alive at the end, or about to be followed by another. `delay_min_s` is the smallest round trip that
    TCP saw. `retransmitted_bytes` is known for uploads. `congestion_control` is the sender's algorithm: for downloads
    the peer's, if it says so. `tls_version` and `tls_cipher` are there when the peer demands TLS.
    Known for uploads, by TCP_INFO: `delivery_rate_bps`, the kernel's own latest estimate, all streams together;
    `reorderings`, how often packets were seen overtaken; `receiver_limited_ratio` and `buffer_limited_ratio`, the share
    of the time in which the peer's window or this host's buffer held the transfer up, not the line. For downloads:
    `out_of_order_segments`, those that came before an earlier one.
    `delay_idle_median_s` is STAMP's before the transfer, `delay_loaded_*` that of its steady part, with `loaded_delay`
    and a peer that answers STAMP.
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
    tls_version: str | None = None
    tls_cipher: str | None = None
    delivery_rate_bps: int | None = None
    receiver_limited_ratio: float | None = None
    buffer_limited_ratio: float | None = None
    reorderings: int | None = None
    out_of_order_segments: int | None = None
    delay_idle_median_s: float | None = None
    delay_loaded_median_s: float | None = None
    delay_loaded_p95_s: float | None = None
    loaded_packets_sent: int | None = None
    loaded_packets_received: int | None = None
    curve: tuple[CurveSample, ...] = ()


async def measure(context: Context, parameters: CapacityParameters) -> CapacityValues:
    """Transfer once."""
    began_s = time.monotonic()
    link, peer = context.need_link(), context.need_peer()
    protocol = bulk_protocol(peer)
    if protocol is None:
        raise NotRunError(NotRunReason.TOOL_MISSING, f"this agent does not speak {peer.protocol[:32]!r}")
    version = parameters.ip_version
    address = await resolve_host(link, peer.host, version, RESOLVE_TIME_OUT_S, context.usage)
    resolving = replace(context.usage)  # the transfer says what it cost as a total: this comes on top

    def count(total_bytes: int) -> None:
        if parameters.direction == "download":
            context.usage.received_bytes = resolving.received_bytes + total_bytes
        else:
            context.usage.sent_bytes = resolving.sent_bytes + total_bytes

    def open_socket() -> socket.socket:
        return link.socket(version, socket.SOCK_STREAM)

    tls = TlsTerms(peer.host, context.peer_ca_file) if peer.tls else None
    order = replace(_order(peer, address, parameters), protocol=protocol, tls=tls)
    try:
        if parameters.loaded_delay:
            flow = StampFlow(link, version, address, peer.stamp_port, context.clock.reading(), context.stamp_key(peer))
            done, delays = await _transfer_and_watch(context, flow, lambda: transfer(order, open_socket, count))
        else:
            done, delays = await transfer(order, open_socket, count), None
    except MeasurementFailedError as error:
        raise blame_link(link, error) from error
    if not link.is_up():  # a stream would have said so only some seconds later
        raise MeasurementFailedError(Operation.TRANSFER, FailureKind.LINK_LOST, f"{link.interface} went down")
    if done.estimate.capacity_bps <= 0:
        raise MeasurementFailedError(Operation.TRANSFER, FailureKind.STALLED, "nothing moved in the end")
    context.usage.rate_bps = done.estimate.capacity_bps
    context.usage.cpu_ratio, context.usage.transfer_s = done.cpu_ratio, done.transfer_s
    return _with_delays(_values(done, done.began_s - began_s), delays)


async def _transfer_and_watch(
    context: Context, flow: StampFlow, move: Callable[[], Awaitable[Transfer]]
) -> tuple[Transfer, tuple[DelaySummary, LoadedDelays]]:
    """The transfer, and the delay before it and during its steady part."""
    beside = Usage()  # the transfer says what it cost as a total: its own packets are added afterwards
    idle = await idle_delay(flow, beside)
    async with DelayWatch(flow, beside) as watch:
        done = await move()
        await watch.settle()
    context.usage.sent_bytes += beside.sent_bytes
    context.usage.received_bytes += beside.received_bytes
    ended_s = done.began_s + done.estimate.until_s
    return done, (idle, watch.between(ended_s - done.estimate.steady_s, ended_s))


def _with_delays(values: CapacityValues, delays: tuple[DelaySummary, LoadedDelays] | None) -> CapacityValues:
    if delays is None:
        return values
    idle, loaded = delays
    return msgspec.structs.replace(
        values,
        delay_idle_median_s=idle.median_s,
        delay_loaded_median_s=loaded.delay.median_s,
        delay_loaded_p95_s=loaded.delay.p95_s,
        loaded_packets_sent=loaded.sent,
        loaded_packets_received=loaded.received,
    )


def _order(peer: Peer, address: str, parameters: CapacityParameters) -> Order:
    return Order(
        direction=parameters.direction,
        address=address,
        port=peer.http_port,
        host=peer.host,
        path=peer.download_path if parameters.direction == "download" else peer.upload_path,
        max_duration_s=parameters.max_duration_s,
        max_bytes=parameters.max_bytes,
        file_bytes=parameters.file_bytes,
        streams_max=parameters.streams_max,
        is_load=parameters.loaded_delay,
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
        tls_version=done.tls.version if done.tls else None,
        tls_cipher=done.tls.cipher if done.tls else None,
        delivery_rate_bps=done.tcp.delivery_rate_bps,
        receiver_limited_ratio=done.tcp.receiver_limited_ratio,
        buffer_limited_ratio=done.tcp.buffer_limited_ratio,
        reorderings=done.tcp.reorderings,
        out_of_order_segments=done.tcp.out_of_order_segments,
        curve=tuple(CurveSample(offset_s=offset_s + end_s, rate_bps=rate_bps) for end_s, rate_bps in done.curve),
    )


def _misfits(parameters: CapacityParameters, peer: Peer | None) -> Iterator[Misfit]:
    """What its peer cannot be."""
    yield from peer_misfits(peer, parameters.ip_version)


def _time_out_s(parameters: CapacityParameters) -> float:
    before_s = RESOLVE_TIME_OUT_S + CONNECT_TIME_OUT_S + TLS_TIME_OUT_S + REQUEST_TIME_OUT_S
    beside_s = 2 * IDLE_PLAN.duration_s_max() if parameters.loaded_delay else 0.0
    return before_s + parameters.max_duration_s + beside_s + _MARGIN_S


TASK = TaskType(
    name="capacity",
    # 1: without arrivals behind a gap, with any number of streams.
    version=2,
    parameters=CapacityParameters,
    values=CapacityValues,
    measure=measure,
    misfits=_misfits,
    load=Load.HEAVY,
    time_out_s=_time_out_s,
    baseline_fields=("capacity_bps", "delay_min_s"),
)
