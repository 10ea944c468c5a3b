"""The loop of one bulk transfer: streams are added in stages while that gains, and it ends when enough is known."""

from __future__ import annotations

import mmap
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from probe.errors import MeasurementFailedError, NotRunError
from probe.flows.bulk.allowance import Allowance
from probe.flows.bulk.estimate import GAIN_RATIO_MIN, SAMPLE_PERIOD_S, Advice, CapacityEstimator, Estimate, StopReason
from probe.flows.bulk.pauses import PAUSE_FIRST_S, Lasting, Phase, first_pause_s, pause_s
from probe.flows.bulk.result import Transfer as Transfer  # noqa: PLC0414 - others know it by this module
from probe.flows.bulk.result import delay_min_s, tcp_facts
from probe.flows.bulk.roster import Roster
from probe.flows.bulk.standing_queue import StandingQueue
from probe.flows.bulk.stream import RECEIVE_BYTES_MAX, Order, Stream, StreamState
from probe.messages import FailureKind, NotRunReason, Operation

STREAMS_PER_STAGE: Final = 4
# With packets waiting at the bottleneck all the time the line is full. Only a limit to each stream, or somebody else's
# streams, could still hide what it can do, and of that one more than four shows enough: four more would cost the CPU as
# much as the first four do. If it had no time to show, or none wait any more, four are tried all the same.
_STREAMS_TO_TRY: Final = 1
_TRIED_S: Final = 0.3
# A fifth stream gains a quarter where each is held back, and 4 % beside one of somebody else's.
_TRIAL_GAIN_RATIO_MIN: Final = 1.025
CURVE_STEP_S: Final = 0.1
_LONG_RTT_S: Final = 0.12
# The longer the path, the more streams it takes to fill it within the time of a test: at most so many up to this round
# trip. The last row is for all beyond.
_STREAMS_OF_ROUND_TRIP: Final = ((0.04, 4), (_LONG_RTT_S, 8), (float("inf"), 16))
# With a limit there are no bytes to try out more streams with.
_LIMITED_STREAMS_MIN: Final = 8
# A peer must never run out of requests while its window grows, which doubles it each round trip at most.
_GROWTH_IN_RAMP: Final = 2.0
_LIMITED_STREAM_BYTES_MIN: Final = 96 * 1024
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
        self._order, self._on_bytes, self._stop = order, on_bytes, stop
        self._watch = watch or _NOBODY
        self._estimator = CapacityEstimator()
        self._queue = StandingQueue()
        self._buffer = memoryview(mmap.mmap(-1, RECEIVE_BYTES_MAX))  # no memory before it is written to
        limit_bytes = order.max_bytes if order.file_bytes is None else order.file_bytes
        self._allowance = Allowance(limit_bytes, is_hard=order.file_bytes is None)
        self._roster = Roster(order, open_socket, self._allowance)
        self._total_bytes, self._counted_s = 0, 0.0
        self._is_planned = self._is_trial = False
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
            self._roster.open(has_begun=False)
            reason = None
            while reason is None:
                reason = self._turn()
            return self._result(reason, time.thread_time() - began_cpu_s)
        finally:
            self._roster.close()

    def _turn(self) -> StopReason | None:
        """Serve the streams until the next sample is due, then judge."""
        began_s = time.monotonic()
        while (rest_s := began_s + self._period_s - time.monotonic()) > 0 and not self._is_over:
            if self._stop.is_set():
                raise StoppedError
            wait_s = min(rest_s, self._roster.open_due(has_begun=self._began_s is not None) or rest_s)
            flowing = self._roster.flowing
            for stream, events in self._roster.poll(min(wait_s, self._pause_s) if flowing else wait_s):
                self._serve(stream, events)
            if self._roster.flowing:
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
        is_calm = self._estimator.is_calm and self._roster.flowing and self._watch is _NOBODY
        return _CALM_PERIOD_S if is_calm and not self._is_capped else SAMPLE_PERIOD_S

    @property
    def _is_over(self) -> bool:
        """Whether the limit is used up: a cap when the first stream has nothing more to do, a file when the last.

        What a stream gave back that the peer ended goes to a new one, though all others have nothing more to do. A
        stream that came too late to get anything of a file is not waited for.
        """
        roster = self._roster
        return roster.is_spent and (self._order.file_bytes is None or not (roster.owes_bytes or roster.missing))

    def _pause(self, rest_s: float) -> None:
        """Let some more come, so that one look at a socket takes it all; but nobody waits for an answer longer."""
        if self._moved_s is not None and any(
            stream.state is StreamState.MOVING for stream in self._roster.running.values()
        ):
            time.sleep(min(self._pause_s, rest_s))

    def _let_flow(self) -> None:
        """Look at all streams that only pass bytes on, at once: one by one they would wake us ten times as often."""
        for stream in self._roster.flowing:
            if self._stop.is_set():
                raise StoppedError
            try:
                stream.flow(self._buffer)
            except MeasurementFailedError as error:
                self._roster.drop(stream, error)
            else:
                if stream.state is not StreamState.MOVING:
                    self._see_to(stream)

    def _serve(self, stream: Stream, events: int) -> None:
        was_moving, wanted = stream.state is StreamState.MOVING, stream.wanted_when_moving
        try:
            stream.serve(events, self._buffer)
        except MeasurementFailedError as error:
            self._roster.drop(stream, error)
            return
        if not was_moving or stream.state is not StreamState.MOVING or stream.wanted_when_moving != wanted:
            self._see_to(stream)

    def _see_to(self, stream: Stream) -> None:
        """Do what the new state of a stream asks for."""
        if self._began_s is None and stream.has_asked:
            self._began_s = time.monotonic()
        if stream.state is StreamState.ENDED:
            self._roster.drop(stream)
        else:
            self._roster.watch(stream)
        if not self._is_planned:
            self._plan(stream)

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
        self._roster.wanted = min(streams, self._order.streams_max)
        self._allowance.share_among(self._roster.wanted)

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
        self._counted_s = now_s - self._began_s
        if self._is_over and self._order.file_bytes is None and self._estimator.last_s > 0:
            return StopReason.MAX_BYTES  # without this sample: some of it was no longer under full load
        if self._roster.is_spent:
            self._estimator.end_load()
        self._estimator.add(now_s - self._began_s, total_bytes)
        round_trips_s = [rtt_s for stream in self._roster.running.values() if (rtt_s := stream.round_trip_s)]
        self._queue.add(now_s, round_trips_s)
        self._watch.on_round_trips(round_trips_s)
        reason = self._limit_reached(now_s - self._began_s)
        if reason is not None:
            return reason
        can_grow = self._roster.wanted < self._order.streams_max and not self._allowance.is_limited
        advice, reason = self._estimator.advise(
            self._rtt_s,
            can_grow=can_grow,
            is_unsure=self._is_trial and not self._has_been_tried(now_s),
            gain_ratio_min=_TRIAL_GAIN_RATIO_MIN if self._is_trial else GAIN_RATIO_MIN,
        )
        if advice is Advice.GROW:
            self._grow()
        self._tune(now_s)
        return None if self._order.until_told or self._order.file_bytes is not None else reason

    def _count(self) -> int:
        # A head that waits to be read is counted until then; no payload can exceed the limit.
        total_bytes = self._allowance.at_most(self._roster.count())
        self._learn_rtt()
        return total_bytes

    def _check_streams(self, now_s: float) -> None:
        """Give up on the dead, replace the finished.

        Raises:
            MeasurementFailedError: no stream is left, or none has moved a byte for 3 s.
        """
        for stream in [stream for stream in self._roster.running.values() if stream.state is not StreamState.MOVING]:
            try:
                stream.check_time(now_s)
            except MeasurementFailedError as error:
                self._roster.drop(stream, error)
        roster = self._roster
        if not self._is_planned and roster.failed and self._began_s is not None:
            self._is_planned, roster.wanted = True, min(STREAMS_PER_STAGE, self._order.streams_max)
        if not roster.running and not roster.missing and not self._is_complete:
            raise roster.first_problem or MeasurementFailedError(
                Operation.TRANSFER, FailureKind.CLOSED, "the peer ended every stream"
            )
        self._check_stall(now_s)

    @property
    def _is_complete(self) -> bool:
        """Whether the limit was reached, rather than every stream lost on the way to it."""
        return self._roster.is_spent and (self._order.file_bytes is None or self._total_bytes >= self._order.file_bytes)

    def _check_stall(self, now_s: float) -> None:
        if self._moved_s is None:
            if any(stream.state is StreamState.MOVING for stream in self._roster.running.values()):
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
        if self._roster.first_problem is not None:
            return self._roster.first_problem
        operation = Operation.REQUEST if self._moved_s is None else Operation.TRANSFER
        return MeasurementFailedError(operation, FailureKind.TIMED_OUT, f"no byte within {passed_s:.1f} s")

    def _grow(self) -> None:
        is_few = self._roster.wanted <= STREAMS_PER_STAGE  # a ninth stream may be too slow to show an eighth
        self._is_trial = is_few and self._queue.stands(self._rtt_s)
        more = _STREAMS_TO_TRY if self._is_trial else STREAMS_PER_STAGE
        self._roster.wanted = min(self._roster.wanted + more, self._order.streams_max)

    def _has_been_tried(self, now_s: float) -> bool:
        """Whether the stream that was added had its time, on a line that was full all the while."""
        youngest_s = min((stream.moves_for_s(now_s) for stream in self._roster.running.values()), default=0.0)
        return not self._roster.missing and youngest_s >= _TRIED_S and self._queue.stands(self._rtt_s)

    def _tune(self, now_s: float) -> None:
        """Adapt to the rate: what is asked for ahead, what waits in the sockets, how often they are looked at."""
        if now_s < self._next_tune_s:
            return
        self._next_tune_s = now_s + (_TUNE_PERIOD_S if self._estimator.is_steady else 0.0)
        for stream in self._roster.running.values():
            stream.tune(now_s)
        self._pause_s = pause_s(
            self._phase(),
            [Lasting(stream.moves_for_s(now_s), stream.lasts_s) for stream in self._roster.running.values()],
        )
        if self._allowance.is_limited:
            under_way_bytes = self._estimator.rate_bps() / _BITS * (self._rtt_s + self._pause_s)
            self._allowance.ask_ahead(under_way_bytes * (1 if self._estimator.ramp_is_over else _GROWTH_IN_RAMP))

    def _phase(self) -> Phase:
        return Phase(
            direction=self._order.direction,
            rtt_s=self._rtt_s,
            queue_s=self._queue.lately_s(self._rtt_s) if self._may_use_queue else 0.0,
            is_capped=self._is_capped,
            is_calm=self._estimator.is_calm,
            is_level=self._estimator.is_level(self._rtt_s),
        )

    @property
    def _may_use_queue(self) -> bool:
        """Whether what waits at the bottleneck may shrink for a moment, since one look fills every stream up again."""
        return bool(self._roster.flowing) and not self._allowance.is_limited and not self._order.is_load

    @property
    def _rtt_s(self) -> float:
        """The least round trip of all streams so far."""
        return self._rtt_min_s or _RTT_UNKNOWN_S

    def _learn_rtt(self) -> None:
        least_s = delay_min_s(self._roster.infos())
        if least_s is not None:
            self._rtt_min_s = min(least_s, self._rtt_min_s or least_s)

    def _estimate(self, reason: StopReason) -> Estimate:
        if not self._allowance.is_limited:
            return self._estimator.estimate()
        # Where receive windows keep to the cap, they and not the line may make the trains. Those of a file are seen
        # too seldom.
        may_use_trains = self._is_capped and not self._allowance.by_window
        estimate = self._estimator.capped_estimate(self._rtt_s, may_use_trains=may_use_trains)
        is_whole = reason in (StopReason.MAX_BYTES, StopReason.WHOLE_FILE)
        return self._estimator.whole_estimate() if is_whole and not estimate.capacity_bps else estimate

    def _result(self, reason: StopReason, cpu_s: float) -> Transfer:
        began_s = self._began_s or 0.0
        transfer_s = max(self._counted_s, self._estimator.last_s)
        everyone = self._roster.everyone
        return Transfer(
            estimate=self._estimate(reason),
            stopped_by=reason,
            streams=self._roster.carrying,
            streams_failed=self._roster.failed,
            transferred_bytes=self._total_bytes,
            transfer_s=transfer_s,
            began_s=began_s,
            cpu_ratio=cpu_s / transfer_s,
            tcp=tcp_facts(
                [stream.info for stream in everyone if stream.info is not None],
                sends=self._order.direction == "upload",
                alive=self._roster.infos(),
            ),
            congestion_control=next((name for stream in everyone if (name := stream.congestion_control)), None),
            tls=next((stream.wire.tls for stream in everyone if stream.wire.tls), None),
            curve=self._estimator.curve(CURVE_STEP_S),
        )
