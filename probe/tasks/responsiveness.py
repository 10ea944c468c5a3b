"""Task `responsiveness`: how long a round trip takes while the line is busy in one direction, against the idle line.

Round trips per minute by draft-ietf-ippm-responsiveness, and beside them the plain delays: of STAMP packets on a flow
of their own, first on the idle line, then under load. The draft's tests load both directions at once or one after the
other; here it is one direction per measurement, so that a result says which buffer is too deep.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec

from probe.errors import MeasurementFailedError
from probe.flows.bulk.run import Transfer
from probe.flows.bulk.stream import CONNECT_TIME_OUT_S, REQUEST_TIME_OUT_S, Order
from probe.flows.bulk.tls_contexts import TlsContexts
from probe.flows.bulk.wire import TlsTerms
from probe.flows.dns.query import resolve_host
from probe.flows.echo.delays import DelaySummary
from probe.flows.http.channel import blame_link
from probe.flows.load.foreign_probe import Target
from probe.flows.load.loaded_delay import IDLE_PLAN, StampFlow, idle_delay
from probe.flows.load.loaded_direction import LoadedDirection
from probe.flows.load.requests import Requests
from probe.links import Link
from probe.messages import FailureKind, Operation, Peer
from probe.tasks.base import Context, Load, Parameters, Sample, TaskType, Values
from probe.tasks.fit import PEER_FIELD, Misfit, peer_misfits, refuse

RESOLVE_TIME_OUT_S: Final = 5.0
# The stragglers of the delay series, closing the sockets.
_MARGIN_S: Final = 4.0


class ResponsivenessParameters(Parameters, frozen=True):
    """One direction of one line.

    `interval_s` is the draft's ID (its default is 1 s; half of that halves the bytes), `probes_per_s` how often a
    request is made on a connection of its own (the draft allows 100; its 5 % of the capacity is kept to).
    `max_duration_s` and `max_bytes` end the load when nothing has settled by then.
    """

    direction: Literal["download", "upload"] = "download"
    ip_version: Literal[4, 6] = 4
    interval_s: Annotated[float, msgspec.Meta(ge=0.2, le=5)] = 0.5
    probes_per_s: Annotated[float, msgspec.Meta(ge=1, le=100)] = 10.0
    max_duration_s: Annotated[float, msgspec.Meta(ge=2, le=60)] = 12.0
    max_bytes: Annotated[int, msgspec.Meta(ge=100_000)] | None = None
    streams_max: Annotated[int, msgspec.Meta(ge=1, le=16)] = 16


class IntervalSample(Sample, frozen=True):
    """One interval under load; `offset_s` is its end, the goodput the average of it and the three before it."""

    goodput_bps: float


class ResponsivenessValues(Values, frozen=True):
    """What one loaded direction did to round trips.

    `rpm` is the draft's responsiveness in round trips per minute: the mean of `foreign_rpm` (new connections) and
    `self_rpm` (the connections that carry the load, by the kernel's estimate, which the draft allows for HTTP/1.1).
    `tcp_s`, `tls_s` (per round trip, absent without TLS), `http_s` and `self_s` are the trimmed means behind it, all
    of the last four intervals. `confidence` and `load_confidence` are low, medium or high. `delay_idle_*` and
    `delay_loaded_*` are STAMP round trips on a flow of their own before and during the same four intervals; absent
    where the peer answers none. `load_bps` is the goodput of those intervals, absent when
    none ended.
    """

    load_confidence: str
    confidence: str
    intervals: int
    probes: int
    probes_failed: int
    transferred_bytes: int
    transfer_s: float
    streams: int
    load_bps: float | None = None
    rpm: float | None = None
    foreign_rpm: float | None = None
    self_rpm: float | None = None
    tcp_s: float | None = None
    tls_s: float | None = None
    http_s: float | None = None
    self_s: float | None = None
    delay_idle_min_s: float | None = None
    delay_idle_median_s: float | None = None
    delay_loaded_median_s: float | None = None
    delay_loaded_p95_s: float | None = None
    delay_loaded_max_s: float | None = None
    loaded_packets_sent: int | None = None
    loaded_packets_received: int | None = None
    goodput: tuple[IntervalSample, ...] = ()


async def measure(context: Context, parameters: ResponsivenessParameters) -> ResponsivenessValues:
    """Measure one direction once: idle first, then loaded.

    Raises:
        MeasurementFailedError: the load could not be made, not one request was answered under it, or the link went
            away; says why.
        NotRunError: the link is down, or the host stood still; the peer has nothing to ask for (`bad_parameters`).
    """
    began_s = time.monotonic()
    link, peer = context.need_link(), context.need_peer()
    refuse(_misfits(parameters, peer))
    address = await resolve_host(link, peer.host, parameters.ip_version, RESOLVE_TIME_OUT_S, context.usage)
    tls = TlsTerms(peer.host, context.peer_ca_file) if peer.tls else None
    line = _Line(context, parameters, link, peer, address, tls, context.stamp_key(peer))
    idle = await idle_delay(line.stamp_flow(), context.usage)
    requests = Requests(line.target(), line.open_stream, parameters.probes_per_s, context.usage)
    loaded = LoadedDirection(
        line.order(), line.open_stream, requests, line.stamp_flow(), parameters.interval_s, context.usage
    )
    try:
        done = await loaded.run()
    except MeasurementFailedError as error:
        raise blame_link(link, error) from error
    if not link.is_up():  # too shortly before the end for a stall: what came until then would read as a slow line
        raise MeasurementFailedError(Operation.TRANSFER, FailureKind.LINK_LOST, "the link went down meanwhile")
    context.usage.cpu_ratio, context.usage.transfer_s = done.cpu_ratio, done.transfer_s
    return _values(done, loaded, idle, began_s)


@dataclass(frozen=True, slots=True)
class _Line:
    """What is measured, and how to reach who answers."""

    context: Context
    parameters: ResponsivenessParameters
    link: Link
    peer: Peer
    address: str
    tls: TlsTerms | None
    stamp_key: bytes | None

    def open_stream(self) -> socket.socket:
        return self.link.socket(self.parameters.ip_version, socket.SOCK_STREAM)

    def stamp_flow(self) -> StampFlow:
        reading, port = self.context.clock.reading(), self.peer.stamp_port
        return StampFlow(self.link, self.parameters.ip_version, self.address, port, reading, self.stamp_key)

    def target(self) -> Target:
        tls = None if self.tls is None else TlsContexts(self.tls)
        if tls is not None:
            tls.context()  # reads the authorities now, not while the line is loaded
        return Target(self.address, self.peer.http_port, self.peer.host, self.peer.small_path, tls)

    def order(self) -> Order:
        parameters, peer = self.parameters, self.peer
        return Order(
            direction=parameters.direction,
            address=self.address,
            port=peer.http_port,
            host=peer.host,
            path=peer.download_path if parameters.direction == "download" else peer.upload_path,
            max_duration_s=parameters.max_duration_s,
            max_bytes=parameters.max_bytes,
            streams_max=parameters.streams_max,
            is_load=True,
            until_told=True,
            tls=self.tls,
        )


def _values(done: Transfer, loaded: LoadedDirection, idle: DelaySummary, began_s: float) -> ResponsivenessValues:
    verdict, delays = loaded.conditions.verdict(), loaded.delays
    found = verdict.responsiveness
    return ResponsivenessValues(
        load_bps=verdict.load_bps,
        load_confidence=str(verdict.load_confidence),
        confidence=str(verdict.confidence),
        intervals=loaded.conditions.intervals,
        probes=found.probes,
        probes_failed=loaded.requests.failed,
        transferred_bytes=done.transferred_bytes,
        transfer_s=done.transfer_s,
        streams=done.streams,
        rpm=found.rpm,
        foreign_rpm=found.foreign_rpm,
        self_rpm=found.self_rpm,
        tcp_s=found.tcp_s,
        tls_s=found.tls_s,
        http_s=found.http_s,
        self_s=found.self_s,
        delay_idle_min_s=idle.min_s,
        delay_idle_median_s=idle.median_s,
        delay_loaded_median_s=delays.delay.median_s,
        delay_loaded_p95_s=delays.delay.p95_s,
        delay_loaded_max_s=delays.delay.max_s,
        loaded_packets_sent=delays.sent,
        loaded_packets_received=delays.received,
        goodput=tuple(IntervalSample(offset_s=end_s - began_s, goodput_bps=bps) for end_s, bps in loaded.goodput_bps),
    )


def _misfits(parameters: ResponsivenessParameters, peer: Peer | None) -> Iterator[Misfit]:
    """The draft's small object, and a load that goes on until told, are there over plain HTTP alone."""
    if peer is not None and peer.protocol != "http":
        problem = f"a peer of protocol {peer.protocol[:32]} has no small object to ask for under load"
        yield Misfit(PEER_FIELD, problem, "name a peer of protocol http; for ndt7 and librespeed there is `capacity`")
    yield from peer_misfits(peer, parameters.ip_version)


def _time_out_s(parameters: ResponsivenessParameters) -> float:
    before_s = RESOLVE_TIME_OUT_S + IDLE_PLAN.duration_s_max() + CONNECT_TIME_OUT_S + REQUEST_TIME_OUT_S
    return before_s + parameters.max_duration_s + _MARGIN_S


TASK = TaskType(
    name="responsiveness",
    version=1,
    parameters=ResponsivenessParameters,
    values=ResponsivenessValues,
    measure=measure,
    misfits=_misfits,
    load=Load.HEAVY,
    time_out_s=_time_out_s,
    baseline_fields=("rpm", "delay_loaded_median_s", "delay_loaded_p95_s"),
)
