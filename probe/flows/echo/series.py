"""A series of numbered packets: when each is to leave, what became of them, and whether that is a measurement."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from probe.errors import MeasurementFailedError
from probe.flows.echo.delays import Arrival
from probe.flows.faults import failed, kind_of
from probe.flows.moments import Stamped
from probe.messages import FailureKind, Operation

# Not 0, so that a reflector which counts on its own can be told from one that repeats our numbers
# (`delays.split_loss`). To the reflector it looks as if packet 0 had been lost on the way.
FIRST_SEQUENCE: Final = 1

# Each gap is drawn from interval * (1 +- this), so that the series cannot lock to something periodic (RFC 3432).
SPREAD_RATIO: Final = 0.1


class ByteCount(Protocol):
    """Where the cost of the series is kept."""

    sent_bytes: int
    received_bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How many packets to send, how far apart, and how long to wait for each (Tmax of RFC 6673)."""

    packets: int
    interval_s: float
    time_out_s: float

    def duration_s_max(self) -> float:
        """The longest that the series can take."""
        return self.packets * self.interval_s * (1 + SPREAD_RATIO) + self.time_out_s


@dataclass(slots=True)
class Series:
    """What became of the packets.

    Attributes:
        sent_sequences: the numbers of those that the kernel took, in order.
        arrivals: what came back, in order of arrival.
        refused_sequences: those that were answered by a refusal: not lost, and no delay either.
        send_error: the last refusal of the kernel to send.
        network_error: the last error that the network sent back.
        stamped: the worst clock that a delay of the series was read from; absent without delays.
        refused_by: who reported a refusal, by address: the host itself, or a firewall on the way in its name.
    """

    sent_sequences: list[int] = field(default_factory=list)
    arrivals: list[Arrival] = field(default_factory=list)
    refused_sequences: set[int] = field(default_factory=set)
    send_error: OSError | None = None
    network_error: OSError | None = None
    stamped: Stamped | None = None
    refused_by: set[str] = field(default_factory=set)

    @property
    def sent(self) -> int:
        """How many packets the kernel took."""
        return len(self.sent_sequences)

    def lost_link(self) -> bool:
        """Whether the kernel said that the interface is gone."""
        return self.send_error is not None and kind_of(self.send_error) == FailureKind.LINK_LOST

    def note_stamped(self, stamped: Stamped) -> None:
        """A delay was read from this clock."""
        self.stamped = stamped if self.stamped is None else min(self.stamped, stamped)


class Pacer:
    """Has the packets of a plan sent in their time, over the running event loop.

    Args:
        plan: how many, and how far apart.
        send: sends the packet of a number; says whether there is any use in sending the next one.
    """

    def __init__(self, plan: Plan, send: Callable[[int], bool]) -> None:
        self._plan, self._send = plan, send
        self._all_sent = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = 0.0

    async def run(self) -> None:
        """Send them all."""
        loop = asyncio.get_running_loop()
        self._due_s = loop.time()
        try:
            self._step(loop, FIRST_SEQUENCE)
            await within(self._all_sent, self._plan.duration_s_max())
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def _step(self, loop: asyncio.AbstractEventLoop, sequence: int) -> None:
        """Send one packet and arrange for the next: a chain of timers costs less than a task that sleeps."""
        if not self._send(sequence) or sequence >= FIRST_SEQUENCE + self._plan.packets - 1:
            self._all_sent.set()
            return
        gap_s = self._plan.interval_s * random.uniform(1 - SPREAD_RATIO, 1 + SPREAD_RATIO)  # noqa: S311 - spacing
        # Never earlier than now: a program held up for a second must not send a burst after it.
        self._due_s = max(self._due_s + gap_s, loop.time())
        self._timer = loop.call_at(self._due_s, self._step, loop, sequence + 1)


async def within(event: asyncio.Event, time_out_s: float) -> None:
    """Wait for `event`, but no longer than that."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(time_out_s):
            await event.wait()


def raise_if_failed(
    series: Series,
    is_up: Callable[[], bool],
    sending: Operation = Operation.SEND,
    answering: Operation = Operation.RECEIVE,
) -> None:
    """Tell a series that measured the line from one in which the network, or the link itself, said no.

    Packets without any answer are no failure: they are a loss of everything, and that is a value.

    Raises:
        MeasurementFailedError: the link went away meanwhile (`link_lost`, even when some packets were answered: they
            would be read as loss on the line); or no packet could be sent; or nothing came back but an error.
    """
    sent_error, network_error = series.send_error, series.network_error
    if sent_error is not None and (series.lost_link() or not is_up()):
        raise MeasurementFailedError(sending, FailureKind.LINK_LOST, str(sent_error)) from sent_error
    if sent_error is not None and not series.sent:
        raise failed(sending, sent_error) from sent_error
    if len(series.arrivals) < series.sent and not is_up():
        raise MeasurementFailedError(answering, FailureKind.LINK_LOST, "the link went down meanwhile")
    if network_error is not None and not series.arrivals:
        raise failed(answering, network_error) from network_error
