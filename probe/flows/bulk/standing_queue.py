"""What waits at the bottleneck all the time: the sign of a full line, and what keeps it busy for a moment."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

# As long as a stage is judged by. What a slow start has heaped up may be gone within it.
_MEMORY_S: Final = 0.4
# The last two or three samples: enough to see the queue go before it has gone.
_LATELY_S: Final = 0.12
_STANDS_S_MIN: Final = 0.002  # a receiver's kernel knows whole milliseconds only


class StandingQueue:
    """Follows one transfer by the round trips of its streams. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._round_trips: deque[tuple[float, float]] = deque()

    def add(self, time_s: float, round_trips_s: Iterable[float]) -> None:
        """Take the streams' present round trips, smoothed as the kernel does; the shortest counts."""
        self._round_trips.append((time_s, min(round_trips_s, default=0.0)))
        while self._round_trips[0][0] < time_s - _MEMORY_S:
            self._round_trips.popleft()

    def lately_s(self, rtt_min_s: float) -> float:
        """How long every packet has waited in the last samples at least, where `rtt_min_s` is the empty line's."""
        since_s = self._round_trips[-1][0] - _LATELY_S if self._round_trips else 0.0
        return _waited_s((rtt_s for time_s, rtt_s in self._round_trips if time_s >= since_s), rtt_min_s)

    def stands(self, rtt_min_s: float) -> bool:
        """Whether for 400 ms, or since the first sample, every packet has waited as long as it travels.

        That is more than a line's jitter, and less than what most buffers hold.
        """
        waited_s = _waited_s((rtt_s for _, rtt_s in self._round_trips), rtt_min_s)
        return waited_s >= max(rtt_min_s, _STANDS_S_MIN)


def _waited_s(round_trips_s: Iterable[float], rtt_min_s: float) -> float:
    return max(0.0, min(round_trips_s, default=0.0) - rtt_min_s)
