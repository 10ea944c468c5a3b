"""Round-trip delay on a flow of its own while something else loads the line: series of packets, one after another."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from dataclasses import dataclass, replace
from typing import Final, Self

from probe.errors import MeasurementFailedError, NotRunError
from probe.flows.echo.delays import Arrival, DelaySummary, first_arrivals, summarise
from probe.flows.echo.engine import ByteCount, Echo, EchoProtocol, Plan, prepare
from probe.flows.echo.stamp import StampProtocol
from probe.links import IpVersion, Link
from probe.messages import ClockReading

# 20 packets a second (no more than a voice call's share), in series of a quarter of a second: short enough
# to tell the ramp from the steady part, and every series has a socket and numbers of its own.
_PACKETS: Final = 5
_INTERVAL_S: Final = 0.05
# What comes later than this is lost. The deepest buffers of mobile cells hold two seconds.
_TIME_OUT_S: Final = 3.0
# Series that wait for stragglers at the same moment, at most.
_SERIES_MAX: Final = 16
# The idle line first: enough packets for a median, within a second.
IDLE_PLAN: Final = Plan(packets=20, interval_s=0.05, time_out_s=1.0)


@dataclass(frozen=True, slots=True)
class StampFlow:
    """The packets' own flow: STAMP over a link to a peer's `address` and `port`; `key` where the peer wants one."""

    link: Link
    ip_version: IpVersion
    address: str
    port: int
    reading: ClockReading
    key: bytes | None = None

    def open(self) -> tuple[socket.socket, EchoProtocol]:
        """A connected, non-blocking socket, and the packets to send over it.

        Raises:
            OSError: the kernel knows no way there.
            NotRunError: the link is down.
        """
        sock = self.link.socket(self.ip_version, socket.SOCK_DGRAM)
        try:
            sock.connect((self.address, self.port))
        except OSError:
            sock.close()
            raise
        return sock, StampProtocol(self.reading, key=self.key)


async def idle_delay(flow: StampFlow, usage: ByteCount) -> DelaySummary:
    """The delay of the line as it is found, within 2 s; empty where the peer answers no STAMP."""
    try:
        sock, protocol = flow.open()
        with sock:
            prepare(sock)
            series = await Echo(sock, protocol, IDLE_PLAN, usage).run()
    except OSError:
        return DelaySummary()
    return summarise(series.arrivals)


@dataclass(frozen=True, slots=True)
class _Part:
    """One series: when it began, how many packets it sent, and what came back."""

    began_s: float
    sent: int
    arrivals: tuple[Arrival, ...]


@dataclass(frozen=True, slots=True)
class LoadedDelays:
    """Packets sent and answered in a stretch of time, absent if it was too short; the delay of those answered."""

    sent: int | None
    received: int | None
    delay: DelaySummary


class DelayWatch:
    """Sends until it is stopped. Without an answer of the peer it simply has none.

    Args:
        flow: whom to ask, over which link.
        usage: where the bytes are counted.
    """

    def __init__(self, flow: StampFlow, usage: ByteCount) -> None:
        self._flow, self._usage = flow, usage
        self._parts: list[_Part] = []
        self._running: set[asyncio.Task[None]] = set()
        self._launcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin."""
        self._launcher = asyncio.create_task(self._launch(), name="loaded delay")
        return self

    async def __aexit__(self, *_: object) -> None:
        """End; what is still on its way is not waited for."""
        tasks = [task for task in (self._launcher, *self._running) if task is not None]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def settle(self) -> None:
        """Send no more, and wait for the stragglers of the series that are complete, at most 3 s."""
        if self._launcher is not None:
            self._launcher.cancel()
        if self._running:
            await asyncio.wait(tuple(self._running), timeout=_TIME_OUT_S)

    def between(self, since_s: float, until_s: float) -> LoadedDelays:
        """The series that lie wholly within a stretch of monotonic time."""
        length_s = _PACKETS * _INTERVAL_S
        parts = [part for part in self._parts if since_s <= part.began_s and part.began_s + length_s <= until_s]
        # Every series counts from the same number: move them apart, or they would look like duplicates.
        arrivals = [
            replace(arrival, sequence=arrival.sequence + number * 2 * _PACKETS)
            for number, part in enumerate(parts)
            for arrival in part.arrivals
        ]
        return LoadedDelays(
            sent=sum(part.sent for part in parts) if parts else None,
            received=len(first_arrivals(arrivals)) if parts else None,
            delay=summarise(arrivals),
        )

    async def _launch(self) -> None:
        while True:
            if len(self._running) < _SERIES_MAX:
                task = asyncio.create_task(self._one_series())
                self._running.add(task)
                task.add_done_callback(self._running.discard)
            await asyncio.sleep(_PACKETS * _INTERVAL_S)

    async def _one_series(self) -> None:
        began_s = time.monotonic()
        with contextlib.suppress(MeasurementFailedError, NotRunError, OSError):  # the load's own flow says what failed
            sock, protocol = self._flow.open()
            with sock:
                prepare(sock)
                series = await Echo(sock, protocol, Plan(_PACKETS, _INTERVAL_S, _TIME_OUT_S), self._usage).run()
            self._parts.append(_Part(began_s, series.sent, tuple(series.arrivals)))
