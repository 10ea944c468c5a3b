"""Task `responsiveness`: how long a round trip takes while the line is busy in one direction, against the idle line.

Round trips per minute by draft-ietf-ippm-responsiveness, and beside them the plain delays: of STAMP packets on a flow
of their own, first on the idle line, then under load. The draft's tests load both directions at once or one after the
other; here it is one direction per measurement, so that a result says which buffer is too deep.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec

from probe.errors import MeasurementFailedError, NotRunError
from probe.flows.bulk.run import Transfer, Watch
from probe.flows.bulk.stream import CONNECT_TIME_OUT_S, REQUEST_TIME_OUT_S, Order
from probe.flows.bulk.tls_contexts import TlsContexts
from probe.flows.bulk.transfer import transfer
from probe.flows.bulk.wire import TlsTerms
from probe.flows.dns.query import resolve_host
from probe.flows.echo.delays import DelaySummary
from probe.flows.load.foreign_probe import Target, probe_once
from probe.flows.load.loaded_delay import IDLE_PLAN, DelayWatch, LoadedDelays, StampFlow, idle_delay
from probe.flows.load.responsiveness import SelfProbe, WorkingConditions
from probe.links import Link
from probe.messages import FailureKind, NotRunReason, Operation, Peer
from probe.tasks.base import Context, Load, Parameters, Sample, TaskType, Usage, Values

RESOLVE_TIME_OUT_S: Final = 5.0
# A request that takes longer than this has met a dead line, not a deep buffer.
_PROBE_TIME_OUT_S: Final = 5.0
# Requests that wait for their answer at once: on a line of 2 s no more than this hang on.
_PROBES_WAITING_MAX: Final = 40
# On the slowest lines one request a second is left.
_PROBE_GAP_S_MAX: Final = 1.0
# So many failures and not one answer: the peer has no small object, or is no peer.
_PROBES_FAILED_MAX: Final = 5
# What a request costs until the first have shown it (TLS: a chain of certificates), what the headers of its packets
# add, and the share of the line that all may take (the draft's PTC).
_PROBE_BYTES: Final = 600
_PROBE_BYTES_OVER_TLS: Final = 6000
_PROBE_HEADER_BYTES: Final = 400
_PROBE_SHARE_MAX: Final = 0.05
_BITS: Final = 8
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
    where the peer answers none. `load_bps` is the goodput of those intervals.
    """

    load_bps: float
    load_confidence: str
    confidence: str
    intervals: int
    probes: int
    probes_failed: int
    transferred_bytes: int
    transfer_s: float
    streams: int
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
    loaded_packets_sent: int = 0
    loaded_packets_received: int = 0
    goodput: tuple[IntervalSample, ...] = ()


async def measure(context: Context, parameters: ResponsivenessParameters) -> ResponsivenessValues:
    """Measure one direction once: idle first, then loaded.

    Raises:
        MeasurementFailedError: the load could not be made, or not one request was answered under it; says why.
        NotRunError: the link is down, or the host stood still.
    """
    began_s = time.monotonic()
    link, peer = context.need_link(), context.need_peer()
    if peer.protocol != "http":
        raise NotRunError(NotRunReason.TOOL_MISSING, f"a peer of protocol {peer.protocol[:32]} has no small object")
    address = await resolve_host(link, peer.host, parameters.ip_version, RESOLVE_TIME_OUT_S)
    tls = TlsTerms(peer.host, context.peer_ca_file) if peer.tls else None
    line = _Line(context, parameters, link, peer, address, tls, context.stamp_key(peer))
    idle = await idle_delay(line.stamp_flow(), context.usage)
    loaded = _Loaded(line, began_s)
    return _values(await loaded.run(), loaded, idle)


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
        tls = None if self.tls is None else TlsContexts(self.tls).context()
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
            until_told=True,
            tls=self.tls,
        )


class _Loaded:
    """One loaded direction: the load in its thread, the requests and the judging on the event loop."""

    def __init__(self, line: _Line, began_s: float) -> None:
        self._line, self._began_s = line, began_s
        self._target = line.target()
        self._watch = Watch(on_round_trips=self._take_round_trips)
        self._own: list[SelfProbe] = []  # filled by the load's thread; swapping a list is atomic
        self._total_bytes = self._counted_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._moving = asyncio.Event()
        self._waiting: set[asyncio.Task[None]] = set()
        self._first_problem: MeasurementFailedError | None = None
        self.probes_failed = self._probes_answered = self._probe_bytes = 0
        self.conditions = WorkingConditions(began_s, line.parameters.interval_s)
        self.goodput: list[IntervalSample] = []
        self.delays = LoadedDelays(0, 0, DelaySummary())

    async def run(self) -> Transfer:
        """Load the line until everything has settled or the load's own limits end it."""
        line = self._line
        load = asyncio.create_task(transfer(line.order(), line.open_stream, self._take_bytes, self._watch))
        try:
            async with DelayWatch(line.stamp_flow(), line.context.usage) as delays:
                await self._follow(load)
                self._watch.enough.set()
                done = await load
                self._count(done.transferred_bytes)
                await delays.settle()
                self.delays = delays.between(*self.conditions.window_s)
        finally:
            self._watch.enough.set()
            for task in (load, *self._waiting):
                task.cancel()
            await asyncio.gather(load, *self._waiting, return_exceptions=True)
        if self._first_problem is not None and not self._probes_answered:
            raise self._first_problem
        return done

    async def _follow(self, load: asyncio.Task[Transfer]) -> None:
        """Judge at the end of every interval, from the first byte on; make requests meanwhile."""
        first_byte = asyncio.create_task(self._moving.wait())
        await asyncio.wait((load, first_byte), return_when=asyncio.FIRST_COMPLETED)
        first_byte.cancel()
        interval_s = self._line.parameters.interval_s
        self.conditions = WorkingConditions(time.monotonic(), interval_s)
        requests = asyncio.create_task(self._request_on())
        try:
            while not load.done():
                await asyncio.wait((load,), timeout=interval_s)
                if load.done() or self._end_interval():
                    return
        finally:
            requests.cancel()

    def _end_interval(self) -> bool:
        own, self._own = self._own, []
        for probe in own:
            self.conditions.add_own(probe)
        self._count(self._total_bytes)
        now_s = time.monotonic()
        is_settled = self.conditions.end_interval(now_s, self._total_bytes)
        goodput_bps = self.conditions.last_goodput_bps
        self.goodput.append(IntervalSample(offset_s=now_s - self._began_s, goodput_bps=goodput_bps))
        return is_settled or self._is_hopeless()

    def _is_hopeless(self) -> bool:
        """Whether no request will ever be answered: loading the line any longer would be for nothing."""
        return self.probes_failed >= _PROBES_FAILED_MAX and not self._probes_answered

    async def _request_on(self) -> None:
        while True:
            if len(self._waiting) < _PROBES_WAITING_MAX:
                task = asyncio.create_task(self._request_once())
                self._waiting.add(task)
                task.add_done_callback(self._waiting.discard)
            await asyncio.sleep(self._gap_s())

    def _gap_s(self) -> float:
        """Between two requests: as asked for, and no more than 5 % of what the line carries."""
        affordable_bps = _PROBE_SHARE_MAX * self.conditions.last_goodput_bps
        affordable_s = self._request_bytes() * _BITS / affordable_bps if affordable_bps else 0.0
        return max(1 / self._line.parameters.probes_per_s, min(affordable_s, _PROBE_GAP_S_MAX))

    def _request_bytes(self) -> float:
        """What one has cost so far, in the mean."""
        if self._probes_answered:
            return self._probe_bytes / self._probes_answered + _PROBE_HEADER_BYTES
        return (_PROBE_BYTES if self._target.tls is None else _PROBE_BYTES_OVER_TLS) + _PROBE_HEADER_BYTES

    async def _request_once(self) -> None:
        cost = Usage()
        try:
            probe = await probe_once(self._target, self._line.open_stream, _PROBE_TIME_OUT_S, cost)
            self.conditions.add_foreign(probe)
            self._probes_answered += 1
            self._probe_bytes += cost.sent_bytes + cost.received_bytes
        except MeasurementFailedError as error:
            self.probes_failed += 1
            self._first_problem = self._first_problem or error
        except NotRunError as error:  # the link went away; the load says so too
            self.probes_failed += 1
            lost = MeasurementFailedError(Operation.CONNECT, FailureKind.LINK_LOST, str(error))
            self._first_problem = self._first_problem or lost
        finally:
            self._line.context.usage.sent_bytes += cost.sent_bytes
            self._line.context.usage.received_bytes += cost.received_bytes

    def _take_round_trips(self, round_trips_s: Sequence[float]) -> None:
        now_s = time.monotonic()
        self._own.extend(SelfProbe(now_s, round_trip_s) for round_trip_s in round_trips_s)

    def _take_bytes(self, total_bytes: int) -> None:
        if not self._total_bytes:
            self._loop.call_soon_threadsafe(self._moving.set)
        self._total_bytes = total_bytes

    def _count(self, total_bytes: int) -> None:
        """Say what the load has cost; on the loop, where the packets beside it are counted too."""
        usage, more_bytes = self._line.context.usage, total_bytes - self._counted_bytes
        self._counted_bytes = total_bytes
        if self._line.parameters.direction == "download":
            usage.received_bytes += more_bytes
        else:
            usage.sent_bytes += more_bytes


def _values(done: Transfer, loaded: _Loaded, idle: DelaySummary) -> ResponsivenessValues:
    verdict, delays = loaded.conditions.verdict(), loaded.delays
    found = verdict.responsiveness
    return ResponsivenessValues(
        load_bps=verdict.load_bps,
        load_confidence=str(verdict.load_confidence),
        confidence=str(verdict.confidence),
        intervals=loaded.conditions.intervals,
        probes=found.probes,
        probes_failed=loaded.probes_failed,
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
        goodput=tuple(loaded.goodput),
    )


def _time_out_s(parameters: ResponsivenessParameters) -> float:
    before_s = RESOLVE_TIME_OUT_S + IDLE_PLAN.duration_s_max() + CONNECT_TIME_OUT_S + REQUEST_TIME_OUT_S
    return before_s + parameters.max_duration_s + _MARGIN_S


TASK = TaskType(
    name="responsiveness",
    version=1,
    parameters=ResponsivenessParameters,
    values=ResponsivenessValues,
    measure=measure,
    load=Load.HEAVY,
    time_out_s=_time_out_s,
    baseline_fields=("rpm", "delay_loaded_median_s", "delay_loaded_p95_s"),
)
