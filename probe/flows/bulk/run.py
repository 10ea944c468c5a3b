"""The loop of one bulk transfer: streams are added in stages while that gains, and it ends when enough is known."""

from __future__ import annotations

import mmap
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from probe.errors import MeasurementFailedError, NotRunError
from probe.flows.bulk.allowance import Allowance
from probe.flows.bulk.dialects import StreamMaker
from probe.flows.bulk.estimate import SAMPLE_PERIOD_S, Advice, CapacityEstimator, StopReason
from probe.flows.bulk.pauses import PAUSE_FIRST_S, Lasting, Phase, first_pause_s, pause_s
from probe.flows.bulk.result import Transfer as Transfer  # noqa: PLC0414 - others know it by this module
from probe.flows.bulk.result import delay_min_s, tcp_facts
from probe.flows.bulk.standing_queue import StandingQueue
from probe.flows.bulk.stream import RECEIVE_BYTES_MAX, Order, Stream, StreamState
from probe.flows.tcp_info import TcpInfo
from probe.messages import FailureKind, NotRunReason, Operation

STREAMS_PER_STAGE: Final = 4
# With packets waiting at the bottleneck all the time the line is full. Only a limit to each stream could still hide
# what it can do, and of that one more stream shows a quarter or an eighth on top: four more would cost the CPU as much
# as the first four do. If none wait any more in the end, the line was not full, and four are tried all the same.
_STREAMS_TO_TRY: Final = 1
CURVE_STEP_S: Final = 0.1
# New streams begin one after the other: their slow starts would overshoot, and their losses come, all at once.
_STAGGER_S: Final = 0.01
_LONG_RTT_S: Final = 0.12
# The longer the path, the more streams it takes to fill it within the time of a test: at most so many up to this round
# trip. The last row is for all beyond.
_STREAMS_OF_ROUND_TRIP: Final = ((0.04, 4), (_LONG_RTT_S, 8), (float("inf"), 16))
# With a limit there are no bytes to try out more streams with.
_LIMITED_STREAMS_MIN: Final = 8
# A peer must never run out of requests while its window grows, which doubles it each round trip at most.
_GROWTH_IN_RAMP: Final = 2.0
_LIMITED_STREAM_BYTES_MIN: Final = 96 * 1024
# A stream that was cut after it had moved bytes is replaced, so that the rest of the transfer is like its beginning.
_REPLACED_MAX: Final = 8
# When a limit is about to be reached, its moment matters.
_LAST_PERIOD_S: Final = 0.005
_TUNE_PERIOD_S: Final = 0.2
# Once the rate has stopped rising, decisions are taken on batches of 200 ms and more, of which a sample in the middle
# is enough: each one costs the CPU as much as what is received in 10 ms at 1 Gbit/s.
_CALM_PERIOD_S: Final = 2 * SAMPLE_PERIOD_S
_RTT_UNKNOWN_S: Final = 0.05  # between a fixed line's 5 ms and a mobile one's 100 ms, until the kernel has a sample
_BITS: Final = 8
# Ten samples late or more: nobody was there to count, and what waited in the buffers came all at once.
STOOD_STILL_S: Final = 1.0
# Streams that the peer ends properly are replaced; one that ends thousands of them is not a peer.
_STREAMS_OPENED_MAX: Final = 256


def _ignore(round_trips_s: Sequence[float]) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Who needs the load rather than the figure: says when it is enough, and hears of it every `SAMPLE_PERIOD_S`.

    `on_round_trips` is called in the transfer's thread with the kernel's estimate, in seconds, of each stream.
    """

    enough: threading.Event = field(default_factory=threading.Event)
    on_round_trips: Callable[[Sequence[float]], None] = _ignore


_NOBODY: Final = Watch()


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
        watch: Watch | None = None,
    ) -> None:
        self._order, self._open_socket, self._on_bytes, self._stop = order, open_socket, on_bytes, stop
        self._watch = watch or _NOBODY
        self._estimator = CapacityEstimator()
        self._queue = StandingQueue()
        self._epoll = select.epoll()
        self._streams: dict[int, Stream] = {}
        self._flowing: list[Stream] = []
        self._ended: list[Stream] = []
        self._ended_bytes = 0
        self._buffer = memoryview(mmap.mmap(-1, RECEIVE_BYTES_MAX))  # no memory before it is written to
        self._maker = StreamMaker(order)
        limit_bytes = order.max_bytes if order.file_bytes is None else order.file_bytes
        self._allowance = Allowance(limit_bytes, is_hard=order.file_bytes is None)
        self._first_problem: MeasurementFailedError | None = None
        self._streams_opened = self._streams_wanted = self._streams_failed = self._total_bytes = 0
        self._streams_replaced = self._successors_due = 0
        self._is_planned = self._is_spent = self._has_grown = self._is_trial = False
        self._next_open_s = 0.0
        self._began_s: float | None = None
        self._moved_s: float | None = None
        self._judged_s = 0.0
        self._next_tune_s = 0.0
        self._is_capped = order.max_bytes is not None and order.file_bytes is None
        self._pause_s = PAUSE_FIRST_S
        self._rtt_min_s: float | None = None

    def run(self) -> Transfer:
        """Transfer until enough is known."""
        began_cpu_s = time.thread_time()
        self._judged_s = time.monotonic()
        try:
            self._streams_wanted = 1  # it tells the round trip, by which the number of the others is chosen
            self._open()
            reason = None
            while reason is None:
                reason = self._turn()
            return self._result(reason, time.thread_time() - began_cpu_s)
        finally:
            self._close()

    def _turn(self) -> StopReason | None:
        """Serve the streams until the next sample is due, then judge."""
        began_s = time.monotonic()
        while (rest_s := began_s + self._period_s - time.monotonic()) > 0 and not self._is_over:
            if self._stop.is_set():
                raise StoppedError
            wait_s = min(rest_s, self._open_due())
            for number, events in self._epoll.poll(min(wait_s, self._pause_s) if self._flowing else wait_s):
                self._serve(self._streams[number], events)
            if self._flowing:
                self._let_flow()
            else:
                self._pause(rest_s)
        return self._judge(time.monotonic())

    @property
    def _period_s(self) -> float:
        # Of a file that comes, reading alone shows the end of each stream.
        is_seen = self._order.file_bytes is not None and self._order.direction == "download"
        if self._allowance.is_empty and not is_seen:
            return _LAST_PERIOD_S
        is_calm = self._estimator.is_calm and self._flowing and self._watch is _NOBODY
        return _CALM_PERIOD_S if is_calm else SAMPLE_PERIOD_S

    @property
    def _is_over(self) -> bool:
        """Whether the limit is used up: a cap when the first stream has nothing more to do, a file when the last."""
        return self._is_spent and (self._order.file_bytes is None or not self._streams)

    def _pause(self, rest_s: float) -> None:
        """Let some more come, so that one look at a socket takes it all."""
        if self._moved_s is not None:
            time.sleep(min(self._pause_s, rest_s))

    def _let_flow(self) -> None:
        """Look at all streams that only pass bytes on, at once: one by one they would wake us ten times as often."""
        for stream in self._flowing:
            if self._stop.is_set():
                raise StoppedError
            try:
                stream.flow(self._buffer)
            except MeasurementFailedError as error:
                self._drop(stream, error)
            else:
                if stream.state is not StreamState.MOVING:
                    self._see_to(stream)

    def _serve(self, stream: Stream, events: int) -> None:
        was_moving, wanted = stream.state is StreamState.MOVING, stream.wanted_when_moving
        try:
            stream.serve(events, self._buffer)
        except MeasurementFailedError as error:
            self._drop(stream, error)
            return
        if not was_moving or stream.state is not StreamState.MOVING or stream.wanted_when_moving != wanted:
            self._see_to(stream)

    def _see_to(self, stream: Stream) -> None:
        """Do what the new state of a stream asks for."""
        if self._began_s is None and stream.has_asked:
            self._began_s = time.monotonic()
        if stream.state is StreamState.ENDED:
            self._drop(stream, None)
        else:
            self._epoll.modify(stream.sock.fileno(), stream.wanted)
            self._sort_out()
        if not self._is_planned:
            self._plan(stream)

    def _sort_out(self) -> None:
        self._flowing = [stream for stream in self._streams.values() if stream.flows]

    def _plan(self, scout: Stream) -> None:
        """Choose the number of streams, once the first one has shown the round trip.

        With a limit, wait until it has shown too whether the peer serves parts.
        """
        limited = self._allowance.is_limited
        if not (scout.state is StreamState.MOVING if limited else scout.has_asked):
            return
        self._learn_rtt()
        streams = next(streams for rtt_s, streams in _STREAMS_OF_ROUND_TRIP if self._rtt_s <= rtt_s)
        if limited:
            limit_bytes = self._order.max_bytes or self._order.file_bytes or 0
            streams = min(max(streams, _LIMITED_STREAMS_MIN), max(1, limit_bytes // _LIMITED_STREAM_BYTES_MIN))
        self._is_planned = True
        self._pause_s = first_pause_s(self._phase())
        self._streams_wanted = min(streams, self._order.streams_max)
        self._allowance.share_among(self._streams_wanted)

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
        if self._is_over and self._order.file_bytes is None and self._estimator.last_s > 0:
            return StopReason.MAX_BYTES  # without this sample: some of it was no longer under full load
        if self._is_spent:
            self._estimator.end_load()
        self._estimator.add(now_s - self._began_s, total_bytes)
        round_trips_s = [rtt_s for stream in self._streams.values() if (rtt_s := stream.round_trip_s)]
        self._queue.add(now_s, round_trips_s)
        self._watch.on_round_trips(round_trips_s)
        reason = self._limit_reached(now_s - self._began_s)
        if reason is not None:
            return reason
        can_grow = self._streams_wanted < self._order.streams_max and not self._allowance.is_limited
        is_unsure = self._is_trial and not self._queue.stands(self._rtt_s)
        advice, reason = self._estimator.advise(self._rtt_s, can_grow=can_grow, is_unsure=is_unsure)
        if advice is Advice.GROW:
            self._grow()
        self._tune(now_s)
        return None if self._order.until_told or self._order.file_bytes is not None else reason

    def _count(self) -> int:
        moving_bytes = sum(stream.refresh() for stream in self._streams.values())
        # A head that waits to be read is counted until then; no payload can exceed the limit.
        total_bytes = self._allowance.at_most(moving_bytes + self._ended_bytes)
        self._learn_rtt()
        for stream in [stream for stream in self._streams.values() if stream.is_spent]:
            self._drop(stream, None)
        return total_bytes

    def _check_streams(self, now_s: float) -> None:
        """Give up on the dead, replace the finished.

        Raises:
            MeasurementFailedError: no stream is left, or none has moved a byte for 3 s.
        """
        for stream in [stream for stream in self._streams.values() if stream.state is not StreamState.MOVING]:
            try:
                stream.check_time(now_s)
            except MeasurementFailedError as error:
                self._drop(stream, error)
        if not self._is_planned and self._streams_failed and self._began_s is not None:
            self._is_planned, self._streams_wanted = True, min(STREAMS_PER_STAGE, self._order.streams_max)
        if not self._streams and not self._streams_missing and not self._is_complete:
            raise self._first_problem or MeasurementFailedError(
                Operation.TRANSFER, FailureKind.CLOSED, "the peer ended every stream"
            )
        self._check_stall(now_s)

    @property
    def _is_complete(self) -> bool:
        """Whether the limit was reached, rather than every stream lost on the way to it."""
        return self._is_spent and (self._order.file_bytes is None or self._total_bytes >= self._order.file_bytes)

    def _check_stall(self, now_s: float) -> None:
        if self._moved_s is None:
            if any(stream.state is StreamState.MOVING for stream in self._streams.values()):
                self._moved_s = now_s
        elif now_s - self._moved_s > self._order.stall_time_out_s:
            detail = f"no byte on any stream for {now_s - self._moved_s:.1f} s, {self._total_bytes} before"
            raise MeasurementFailedError(Operation.TRANSFER, FailureKind.STALLED, detail)

    def _limit_reached(self, passed_s: float) -> StopReason | None:
        """The order's own limits."""
        if self._watch.enough.is_set():
            return StopReason.TOLD
        if self._is_over:
            return StopReason.MAX_BYTES if self._order.file_bytes is None else StopReason.WHOLE_FILE
        if passed_s >= self._order.max_duration_s:
            if self._total_bytes == 0:
                raise self._nothing_came(passed_s)
            return StopReason.MAX_DURATION
        return None

    def _nothing_came(self, passed_s: float) -> MeasurementFailedError:
        if self._first_problem is not None:
            return self._first_problem
        operation = Operation.REQUEST if self._moved_s is None else Operation.TRANSFER
        return MeasurementFailedError(operation, FailureKind.TIMED_OUT, f"no byte within {passed_s:.1f} s")

    def _grow(self) -> None:
        self._is_trial = not self._has_grown and self._queue.stands(self._rtt_s)
        self._has_grown = True
        more = _STREAMS_TO_TRY if self._is_trial else STREAMS_PER_STAGE
        self._streams_wanted = min(self._streams_wanted + more, self._order.streams_max)

    @property
    def _streams_missing(self) -> int:
        """How many there should be, less those that are, and those that failed for good."""
        if self._allowance.is_empty:
            return 0
        gone = self._streams_failed - self._streams_replaced
        return max(0, self._streams_wanted - len(self._streams) - gone)

    def _open_due(self) -> float:
        """Open the next stream if one is missing and its time has come; seconds until the next one's, or a sample."""
        if not self._streams_missing:
            return SAMPLE_PERIOD_S
        now_s = time.monotonic()
        if now_s >= self._next_open_s:
            self._next_open_s = now_s + _STAGGER_S
            self._open()
        return _STAGGER_S

    def _open(self) -> None:
        """Open one stream; that it cannot be opened is a failed stream, unless the link was down from the start."""
        self._streams_opened += 1
        self._successors_due = max(0, self._successors_due - 1)
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
        stream = self._maker.make(sock)
        try:
            stream.share(self._allowance)
        except NotRunError:  # what is left does not suffice for one more
            stream.close()
            self._streams_wanted -= 1
            return
        self._start(stream)

    def _start(self, stream: Stream) -> None:
        self._streams[stream.sock.fileno()] = stream
        self._epoll.register(stream.sock.fileno(), stream.wanted)
        try:
            stream.connect()
        except MeasurementFailedError as error:
            self._drop(stream, error)

    def _drop(self, stream: Stream, problem: MeasurementFailedError | None) -> None:
        del self._streams[stream.sock.fileno()]
        stream.refresh()
        stream.close()
        self._ended.append(stream)
        self._ended_bytes += stream.counted_bytes
        self._sort_out()
        self._is_spent = self._is_spent or stream.is_spent
        if problem is None:
            self._successors_due += 1
        else:
            self._fail(problem)
            if stream.counted_bytes and self._streams_replaced < _REPLACED_MAX:
                self._streams_replaced += 1

    def _fail(self, problem: MeasurementFailedError) -> None:
        self._streams_failed += 1
        self._first_problem = self._first_problem or problem

    def _tune(self, now_s: float) -> None:
        """Adapt to the rate: what is asked for ahead, what waits in the sockets, how often they are looked at."""
        if now_s < self._next_tune_s:
            return
        self._next_tune_s = now_s + (_TUNE_PERIOD_S if self._estimator.is_steady else 0.0)
        for stream in self._streams.values():
            stream.tune(now_s)
        self._pause_s = pause_s(
            self._phase(),
            [Lasting(stream.moves_for_s(now_s), stream.lasts_s) for stream in self._streams.values()],
        )
        if self._allowance.is_limited:
            under_way_bytes = self._estimator.rate_bps() / _BITS * (self._rtt_s + self._pause_s)
            self._allowance.ask_ahead(under_way_bytes * (1 if self._estimator.ramp_is_over else _GROWTH_IN_RAMP))

    def _phase(self) -> Phase:
        return Phase(
            direction=self._order.direction,
            rtt_s=self._rtt_s,
            queue_s=0.0 if self._order.is_load else self._queue.lately_s(self._rtt_s),
            is_capped=self._is_capped,
            is_calm=self._estimator.is_calm,
            is_level=self._estimator.is_level(self._rtt_s),
        )

    @property
    def _rtt_s(self) -> float:
        """The least round trip of all streams so far."""
        return self._rtt_min_s or _RTT_UNKNOWN_S

    def _learn_rtt(self) -> None:
        least_s = delay_min_s(self._infos(self._streams.values()))
        if least_s is not None:
            self._rtt_min_s = min(least_s, self._rtt_min_s or least_s)

    @staticmethod
    def _infos(streams: Iterable[Stream]) -> list[TcpInfo]:
        return [stream.info for stream in streams if stream.info is not None]

    def _result(self, reason: StopReason, cpu_s: float) -> Transfer:
        began_s = self._began_s or 0.0
        transfer_s = self._estimator.last_s
        everyone = [*self._streams.values(), *self._ended]
        spent = sum(stream.is_spent for stream in self._ended)
        return Transfer(
            estimate=self._estimator.estimate(),
            stopped_by=reason,
            streams=len(self._streams) + spent + min(self._successors_due, self._streams_missing),
            streams_failed=self._streams_failed,
            transferred_bytes=self._total_bytes,
            transfer_s=transfer_s,
            began_s=began_s,
            cpu_ratio=cpu_s / transfer_s,
            tcp=tcp_facts(
                self._infos(everyone),
                sends=self._order.direction == "upload",
                alive=self._infos(self._streams.values()),
            ),
            congestion_control=next((name for stream in everyone if (name := stream.congestion_control)), None),
            tls=next((stream.wire.tls for stream in everyone if stream.wire.tls), None),
            curve=self._estimator.curve(CURVE_STEP_S),
        )

    def _close(self) -> None:
        for stream in self._streams.values():
            stream.close()
        self._epoll.close()
        self._maker.close()
