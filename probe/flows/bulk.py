"""The loop of one bulk transfer: streams are added in stages while that gains, and it ends when enough is known."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from probe.errors import MeasurementFailedError, NotRunError
from probe.flows.estimate import SAMPLE_PERIOD_S, Advice, CapacityEstimator, Estimate, StopReason
from probe.flows.stream import RECEIVE_BYTES_MAX, Order, Stream, StreamState
from probe.flows.stream_download import DownloadStream
from probe.flows.stream_upload import UploadStream
from probe.messages import FailureKind, NotRunReason, Operation

STREAMS_PER_STAGE: Final = 4
CURVE_STEP_S: Final = 0.1
# Random, so that nothing on the way can compress it, and too long for a cache line's worth of luck.
_SOURCE_BYTES: Final = 8 << 20
_SOURCE_PART_BYTES: Final = 1 << 20
_TUNE_PERIOD_S: Final = 0.2
_RTT_UNKNOWN_S: Final = 0.05  # between a fixed line's 5 ms and a mobile one's 100 ms, until the kernel has a sample
_BITS: Final = 8
# Twenty samples late: nobody was there to count, and what waited in the buffers came all at once.
STOOD_STILL_S: Final = 1.0
# Streams that the peer ends properly are replaced; one that ends thousands of them is not a peer.
_STREAMS_OPENED_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class Transfer:
    """What one bulk transfer showed.

    `transfer_s` runs from the first request to the last count; the curve's times are since `began_s`, the monotonic
    second at which that request was sent. `cpu_ratio` is the share of one core that the transfer's thread used.
    """

    estimate: Estimate
    stopped_by: StopReason
    streams: int
    streams_failed: int
    transferred_bytes: int
    transfer_s: float
    began_s: float
    cpu_ratio: float
    delay_min_s: float | None
    retransmitted_bytes: int | None
    congestion_control: str | None
    curve: tuple[tuple[float, float], ...]

    @property
    def whole_transfer_bps(self) -> float:
        """All bytes over all the time, ramp included."""
        return self.transferred_bytes * _BITS / self.transfer_s


class StoppedError(Exception):
    """The measurement was cancelled; nobody waits for its outcome."""


class Run:
    """The loop of one transfer, in its thread."""

    def __init__(
        self,
        order: Order,
        open_socket: Callable[[], socket.socket],
        on_bytes: Callable[[int], None],
        stop: threading.Event,
    ) -> None:
        self._order, self._open_socket, self._on_bytes, self._stop = order, open_socket, on_bytes, stop
        self._estimator = CapacityEstimator()
        self._epoll = select.epoll()
        self._streams: dict[int, Stream] = {}
        self._ended: list[Stream] = []
        self._buffer = memoryview(bytearray(RECEIVE_BYTES_MAX))
        self._source: int | None = None
        self._first_problem: MeasurementFailedError | None = None
        self._streams_opened = self._streams_wanted = self._streams_failed = self._total_bytes = 0
        self._began_s: float | None = None
        self._moved_s: float | None = None
        self._judged_s = 0.0
        self._next_tune_s = 0.0

    def run(self) -> Transfer:
        """Transfer until enough is known."""
        began_cpu_s = time.thread_time()
        self._judged_s = time.monotonic()
        try:
            self._grow()
            reason = None
            while reason is None:
                reason = self._turn()
            return self._result(reason, time.thread_time() - began_cpu_s)
        finally:
            self._close()

    def _turn(self) -> StopReason | None:
        """Serve the streams until the next sample is due, then judge."""
        due_s = time.monotonic() + SAMPLE_PERIOD_S
        while (rest_s := due_s - time.monotonic()) > 0:
            if self._stop.is_set():
                raise StoppedError
            for number, events in self._epoll.poll(rest_s):
                self._serve(self._streams[number], events)
        return self._judge(time.monotonic())

    def _serve(self, stream: Stream, events: int) -> None:
        wanted = stream.wanted
        try:
            stream.serve(events, self._buffer)
        except MeasurementFailedError as error:
            self._drop(stream, error)
            return
        if stream.state is not StreamState.CONNECTING and self._began_s is None:
            self._began_s = time.monotonic()
        if stream.state is StreamState.ENDED:
            self._drop(stream, None)
        elif stream.wanted != wanted:
            self._epoll.modify(stream.sock.fileno(), stream.wanted)

    def _judge(self, now_s: float) -> StopReason | None:
        """Take a sample, see to the streams, and say whether to stop.

        Raises:
            NotRunError: the host stood still meanwhile (`interrupted`): what came then says nothing about the line.
            MeasurementFailedError: see `_check_streams`.
        """
        still_s, self._judged_s = now_s - self._judged_s, now_s
        if still_s > STOOD_STILL_S:
            raise NotRunError(NotRunReason.INTERRUPTED, f"the probe stood still for {still_s:.1f} s")
        total_bytes = self._count()
        if total_bytes > self._total_bytes:
            self._total_bytes, self._moved_s = total_bytes, now_s
            self._on_bytes(total_bytes)
        self._check_streams(now_s)
        if self._began_s is None:
            return None
        self._estimator.add(now_s - self._began_s, total_bytes)
        reason = self._limit_reached(now_s - self._began_s)
        if reason is not None:
            return reason
        can_grow = self._streams_wanted < self._order.streams_max
        advice, reason = self._estimator.advise(self._rtt_s(), can_grow=can_grow)
        if advice is Advice.GROW:
            self._grow()
        self._tune(now_s)
        return reason

    def _count(self) -> int:
        return sum(stream.refresh() for stream in self._streams.values()) + sum(
            stream.counted_bytes for stream in self._ended
        )

    def _check_streams(self, now_s: float) -> None:
        """Give up on the dead, replace the finished.

        Raises:
            MeasurementFailedError: no stream is left, or none has moved a byte for 3 s.
        """
        for stream in list(self._streams.values()):
            try:
                stream.check_time(now_s)
            except MeasurementFailedError as error:
                self._drop(stream, error)
        while len(self._streams) + self._streams_failed < self._streams_wanted:
            self._open()
        if not self._streams:
            raise self._first_problem or MeasurementFailedError(
                Operation.TRANSFER, FailureKind.CLOSED, "the peer ended every stream"
            )
        self._check_stall(now_s)

    def _check_stall(self, now_s: float) -> None:
        if self._moved_s is None:
            if any(stream.state is StreamState.MOVING for stream in self._streams.values()):
                self._moved_s = now_s
        elif now_s - self._moved_s > self._order.stall_time_out_s:
            detail = f"no byte on any stream for {now_s - self._moved_s:.1f} s, {self._total_bytes} before"
            raise MeasurementFailedError(Operation.TRANSFER, FailureKind.STALLED, detail)

    def _limit_reached(self, passed_s: float) -> StopReason | None:
        """The order's own limits. What is under way when we stop still arrives, so it counts already."""
        if passed_s >= self._order.max_duration_s:
            if self._total_bytes == 0:
                raise self._nothing_came(passed_s)
            return StopReason.MAX_DURATION
        if self._order.max_bytes is not None:
            under_way_bytes = self._estimator.rate_bps() / _BITS * (self._rtt_s() + SAMPLE_PERIOD_S)
            if self._total_bytes + under_way_bytes >= self._order.max_bytes:
                return StopReason.MAX_BYTES
        return None

    def _nothing_came(self, passed_s: float) -> MeasurementFailedError:
        if self._first_problem is not None:
            return self._first_problem
        operation = Operation.REQUEST if self._moved_s is None else Operation.TRANSFER
        return MeasurementFailedError(operation, FailureKind.TIMED_OUT, f"no byte within {passed_s:.1f} s")

    def _grow(self) -> None:
        self._streams_wanted = min(self._streams_wanted + STREAMS_PER_STAGE, self._order.streams_max)
        while len(self._streams) + self._streams_failed < self._streams_wanted:
            self._open()

    def _open(self) -> None:
        """Open one stream; that it cannot be opened is a failed stream, unless the link was down from the start."""
        self._streams_opened += 1
        if self._streams_opened > _STREAMS_OPENED_MAX:
            self._fail(MeasurementFailedError(Operation.TRANSFER, FailureKind.CLOSED, "the peer ends every stream"))
            return
        try:
            sock = self._open_socket()
        except NotRunError as error:
            if self._began_s is None and not self._streams:
                raise
            self._fail(MeasurementFailedError(Operation.CONNECT, FailureKind.LINK_LOST, str(error)))
            return
        except MeasurementFailedError as error:
            self._fail(error)
            return
        self._start(self._new_stream(sock))

    def _start(self, stream: Stream) -> None:
        self._streams[stream.sock.fileno()] = stream
        self._epoll.register(stream.sock.fileno(), stream.wanted)
        try:
            stream.connect()
        except MeasurementFailedError as error:
            self._drop(stream, error)

    def _new_stream(self, sock: socket.socket) -> Stream:
        if self._order.direction == "download":
            return DownloadStream(sock, self._order)
        if self._source is None:
            self._source = random_source(_SOURCE_BYTES)
        return UploadStream(sock, self._order, self._source, _SOURCE_BYTES)

    def _drop(self, stream: Stream, problem: MeasurementFailedError | None) -> None:
        del self._streams[stream.sock.fileno()]
        stream.refresh()
        stream.close()
        self._ended.append(stream)
        if problem is not None:
            self._fail(problem)

    def _fail(self, problem: MeasurementFailedError) -> None:
        self._streams_failed += 1
        self._first_problem = self._first_problem or problem

    def _tune(self, now_s: float) -> None:
        if now_s >= self._next_tune_s:
            self._next_tune_s = now_s + _TUNE_PERIOD_S
            for stream in self._streams.values():
                stream.tune(now_s, ramp_is_over=self._estimator.ramp_is_over)

    def _rtt_s(self) -> float:
        return self._delay_min_s() or _RTT_UNKNOWN_S

    def _delay_min_s(self) -> float | None:
        infos = [stream.info for stream in (*self._streams.values(), *self._ended) if stream.info is not None]
        delays_s = [delay_s for info in infos if (delay_s := info.min_rtt_s or info.rtt_s) is not None]
        return min(delays_s, default=None)

    def _result(self, reason: StopReason, cpu_s: float) -> Transfer:
        began_s = self._began_s or 0.0
        transfer_s = self._estimator.last_s
        everyone = [*self._streams.values(), *self._ended]
        return Transfer(
            estimate=self._estimator.estimate(),
            stopped_by=reason,
            streams=len(self._streams),
            streams_failed=self._streams_failed,
            transferred_bytes=self._total_bytes,
            transfer_s=transfer_s,
            began_s=began_s,
            cpu_ratio=cpu_s / transfer_s,
            delay_min_s=self._delay_min_s(),
            retransmitted_bytes=self._retransmitted_bytes(),
            congestion_control=next((name for stream in everyone if (name := stream.congestion_control)), None),
            curve=self._estimator.curve(CURVE_STEP_S),
        )

    def _retransmitted_bytes(self) -> int | None:
        """Known to the sender alone."""
        if self._order.direction == "download":
            return None
        infos = [stream.info for stream in (*self._streams.values(), *self._ended)]
        counts = [info.retransmitted_bytes for info in infos if info and info.retransmitted_bytes is not None]
        return sum(counts) if counts else None

    def _close(self) -> None:
        for stream in self._streams.values():
            stream.close()
        self._epoll.close()
        if self._source is not None:
            os.close(self._source)


def random_source(length_bytes: int) -> int:
    """A file in memory, full of random bytes, for `sendfile`. The caller closes the descriptor."""
    descriptor = os.memfd_create("bulk", os.MFD_CLOEXEC)
    for _ in range(0, length_bytes, _SOURCE_PART_BYTES):
        os.write(descriptor, os.urandom(_SOURCE_PART_BYTES))
    return descriptor
