"""Measurements that go on all the time: one window after the other, each beginning where the one before ends.

The windows' bounds are instants of the wall clock, a period apart and with the agent's own phase, so that a fleet is
not in step. How long a window lasts is settled when it begins and counted on the monotonic clock: a step of the wall
clock moves the bounds of the next one and leaves neither a gap nor an overlap.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from probe.clock import NS_PER_S, Clock


@dataclass(frozen=True, slots=True)
class Window:
    """One window: which, and from when until when by the wall clock of its beginning."""

    cycle_number: int
    start_unix_ns: int
    end_unix_ns: int

    @property
    def length_s(self) -> float:
        """How long it lasts."""
        return (self.end_unix_ns - self.start_unix_ns) / NS_PER_S


def window_from(start_unix_ns: int, period_ns: int, phase_ns: int) -> Window:
    """The window that begins now: up to the next bound, or to the one after when that is less than half a period away.

    So a start of the agent in mid-slot begins at once, a timer that wakes a little early begins no window of
    microseconds, and no window is longer than a period and a half.
    """
    following = (start_unix_ns - phase_ns) // period_ns + 1
    if 2 * (following * period_ns + phase_ns - start_unix_ns) < period_ns:
        following += 1
    return Window(following - 1, start_unix_ns, following * period_ns + phase_ns)


class WindowChain:
    """Begins one window after the other, from `start` to `stop`.

    Args:
        clock: the clocks.
        period_ns: from bound to bound.
        phase_ns: of the bounds, after multiples of the period since 1970.
        on_window: a window begins; must return at once.
    """

    def __init__(self, clock: Clock, period_ns: int, phase_ns: int, on_window: Callable[[Window], None]) -> None:
        self.bounds = (period_ns, phase_ns)
        self._clock = clock
        self._on_window = on_window
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin the first window at once, on the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._go_on(), name="begin windows")

    def stop(self) -> None:
        """Begin no more of them. The one that goes on is its measurement's business."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _go_on(self) -> None:
        while True:
            window = window_from(self._clock.wall_ns(), *self.bounds)
            self._on_window(window)
            await asyncio.sleep(window.length_s)
