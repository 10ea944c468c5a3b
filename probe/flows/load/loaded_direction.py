"""One direction of a line under load: the bulk streams in their thread, requests and judging on the event loop."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Sequence

from probe.flows.bulk.run import Transfer, Watch
from probe.flows.bulk.stream import Order
from probe.flows.bulk.transfer import transfer
from probe.flows.echo.delays import DelaySummary
from probe.flows.echo.engine import ByteCount
from probe.flows.load.loaded_delay import DelayWatch, LoadedDelays, StampFlow
from probe.flows.load.requests import Requests
from probe.flows.load.responsiveness import SelfProbe, WorkingConditions


class LoadedDirection:
    """Loads one direction until everything has settled.

    Args:
        order: the load.
        open_stream: a socket on the line for each of its streams.
        requests: what is asked meanwhile.
        stamp_flow: the packets beside it.
        interval_s: the length of an interval (the draft's ID).
        usage: where the cost is kept.

    Attributes:
        conditions: what was seen, interval by interval.
        goodput_bps: of each interval under load, its end on the monotonic clock in seconds and the moving average.
        delays: of the packets beside the load in the intervals that count.
    """

    def __init__(
        self,
        order: Order,
        open_stream: Callable[[], socket.socket],
        requests: Requests,
        stamp_flow: StampFlow,
        interval_s: float,
        usage: ByteCount,
    ) -> None:
        self.requests = requests
        self.conditions = WorkingConditions(time.monotonic(), interval_s)
        self.goodput_bps: list[tuple[float, float]] = []
        self.delays = LoadedDelays(0, 0, DelaySummary())
        self._order = order
        self._open_stream = open_stream
        self._stamp_flow = stamp_flow
        self._interval_s = interval_s
        self._usage = usage
        self._watch = Watch(on_round_trips=self._take_round_trips)
        self._own: list[SelfProbe] = []  # filled by the load's thread; swapping a list is atomic
        self._total_bytes = self._counted_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._moving = asyncio.Event()

    async def run(self) -> Transfer:
        """Load the line until everything has settled or the load's own limits end it.

        Raises:
            MeasurementFailedError: the load could not be made, or not one request was answered under it; says why.
            NotRunError: the link is down, or the host stood still.
        """
        load = asyncio.create_task(transfer(self._order, self._open_stream, self._take_bytes, self._watch))
        try:
            async with DelayWatch(self._stamp_flow, self._usage) as delays:
                await self._follow(load)
                self._watch.enough.set()
                done = await load
                await delays.settle()
                self.delays = delays.between(*self.conditions.window_s)
        finally:
            self._watch.enough.set()
            load.cancel()
            await asyncio.gather(load, *self.requests.give_up(), return_exceptions=True)
            self._count()  # however it ended
        if self.requests.first_problem is not None and not self.requests.answered:
            raise self.requests.first_problem
        return done

    async def _follow(self, load: asyncio.Task[Transfer]) -> None:
        """Judge at the end of every interval, from the first byte on; make requests meanwhile."""
        first_byte = asyncio.create_task(self._moving.wait())
        await asyncio.wait((load, first_byte), return_when=asyncio.FIRST_COMPLETED)
        first_byte.cancel()
        self.conditions = WorkingConditions(time.monotonic(), self._interval_s)
        requesting = asyncio.create_task(self.requests.go_on(self.conditions))
        try:
            while not load.done():
                await asyncio.wait((load,), timeout=self._interval_s)
                if load.done() or self._end_interval():
                    return
        finally:
            requesting.cancel()

    def _end_interval(self) -> bool:
        own, self._own = self._own, []
        for probe in own:
            self.conditions.add_own(probe)
        now_s = time.monotonic()
        is_settled = self.conditions.end_interval(now_s, self._total_bytes)
        self.goodput_bps.append((now_s, self.conditions.last_goodput_bps))
        return is_settled or self.requests.is_hopeless

    def _take_round_trips(self, round_trips_s: Sequence[float]) -> None:
        now_s = time.monotonic()
        self._own.extend(SelfProbe(now_s, round_trip_s) for round_trip_s in round_trips_s)

    def _take_bytes(self, total_bytes: int) -> None:
        """In the load's thread, at each of its samples."""
        if not self._total_bytes:
            self._loop.call_soon_threadsafe(self._moving.set)
        self._total_bytes = total_bytes
        self._loop.call_soon_threadsafe(self._count)

    def _count(self) -> None:
        """Say what the load has cost so far; on the loop, where the packets beside it are counted too."""
        total_bytes = self._total_bytes
        more_bytes, self._counted_bytes = total_bytes - self._counted_bytes, total_bytes
        if self._order.direction == "download":
            self._usage.received_bytes += more_bytes
        else:
            self._usage.sent_bytes += more_bytes
