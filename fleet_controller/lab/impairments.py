"""What chance does to packets: delay variation, loss in runs, reordering, duplication. Reproducible by seed."""

from __future__ import annotations

import bisect
import math
import random

# The jitter's cycle: (share of the cycle, level at its end). Between equal levels it stands, else it moves linearly.
# The plateaus make its figures known without a sample size: a fifth of the time at the least delay, a fifth at the
# greatest, a fifth in the middle, and the rest on the slopes between them.
_CYCLE = (
    (0.10, 0.0),
    (0.10, 0.5),
    (0.10, 0.5),
    (0.10, 1.0),
    (0.20, 1.0),
    (0.10, 0.5),
    (0.10, 0.5),
    (0.10, 0.0),
    (0.10, 0.0),
)
_ENDS = [sum(share for share, _ in _CYCLE[: index + 1]) for index in range(len(_CYCLE))]
# How long a cycle is, in widths of the jitter: drawn anew for each, so that no series of probe packets can keep step
# with it. A slope is at most 0.5 / (0.1 * 15) = 1/3: a later packet never overtakes (that needs a slope of -1).
_CYCLE_WIDTHS_MIN, _CYCLE_WIDTHS_MAX = 15, 25


class Jitter:
    """A delay variation of known distribution that keeps the order of packets, however densely they come.

    The deviation swings between -width/2 and +width/2 in cycles of random length, with plateaus at the least, the
    middle and the greatest delay. Of the time it is 20 % at each of them and 40 % uniformly distributed over the width.
    So the median is 0, and any percentile from the 80th on is +width/2: p95 - minimum is the width, exactly, for every
    series of packets that reaches over some cycles. Packets that arrive while it stands are also equidistant again.
    """

    def __init__(self, width_ns: int, seed: int) -> None:
        self._width_ns = width_ns
        self._random = random.Random(seed)  # noqa: S311 - reproducible on purpose
        self._begin_ns, self._end_ns = 0, 0

    def at(self, time_ns: int) -> int:
        """The deviation at `time_ns`, in nanoseconds. Times must not go back."""
        if self._width_ns == 0:
            return 0
        if time_ns >= self._end_ns:
            self._turn(time_ns)
        phase = (time_ns - self._begin_ns) / (self._end_ns - self._begin_ns)
        return round(self._width_ns * (level_at(phase) - 0.5))

    def _turn(self, time_ns: int) -> None:
        """Begin the cycle that `time_ns` falls into. After a long silence it is entered somewhere, not at its start."""
        if time_ns - self._end_ns > self._width_ns * _CYCLE_WIDTHS_MAX:
            length_ns = self._length_ns()
            self._begin_ns = time_ns - self._random.randrange(length_ns)
            self._end_ns = self._begin_ns + length_ns
        while self._end_ns <= time_ns:
            self._begin_ns = self._end_ns
            self._end_ns += self._length_ns()

    def _length_ns(self) -> int:
        return round(self._width_ns * self._random.uniform(_CYCLE_WIDTHS_MIN, _CYCLE_WIDTHS_MAX))


def level_at(phase: float) -> float:
    """The jitter's level (0 to 1) at a phase of its cycle (0 to 1)."""
    index = min(bisect.bisect_right(_ENDS, phase), len(_CYCLE) - 1)
    share, level = _CYCLE[index]
    before = _CYCLE[index - 1][1]  # of the first one: the level at which the cycle ended
    into = min(max(1 - (_ENDS[index] - phase) / share, 0.0), 1.0)
    return before + (level - before) * into


class Lottery:
    """Which packets of a stream are hit: each with the same chance, singly or in runs.

    Instead of asking for every packet, the lengths of the runs are drawn (geometric, as those of a two-state Markov
    chain are: Gilbert's model), which gives the same and costs nothing for the packets that are not hit. A chain is
    asked about packets in the order in which they pass.
    """

    def __init__(self, ratio: float, seed: int | str, mean_burst: float = 1.0) -> None:
        self._random = random.Random(f"lottery {seed}")  # noqa: S311 - reproducible on purpose
        # The chance to go on in the same state. Single hits are independent of the ones before: Bernoulli's trials.
        leave_hit = 1 - ratio if mean_burst <= 1 else 1 / mean_burst
        leave_spared = ratio if mean_burst <= 1 else leave_hit * ratio / (1 - ratio)
        self._leave = (leave_spared, leave_hit)
        self._ratio = ratio
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget what was: of the next packet no more is known than the ratio."""
        self._is_hit = self._random.random() < self._ratio
        self._left = self._draw()

    def hits(self, packets: int) -> list[int]:
        """Which of the next so many packets are hit, by their position from 0."""
        hit: list[int] = []
        position = 0
        while position < packets:
            run = packets - position if self._left is None else min(self._left, packets - position)
            if self._is_hit:
                hit += range(position, position + run)
            position += run
            self._pass(run)
        return hit

    def _pass(self, packets: int) -> None:
        if self._left is None:
            return
        self._left -= packets
        if self._left == 0:
            self._is_hit = not self._is_hit
            self._left = self._draw()

    def _draw(self) -> int | None:
        """The length of a run, one at least: geometric. Absent: for ever."""
        leave = self._leave[self._is_hit]
        if leave <= 0:
            return None
        if leave >= 1:
            return 1
        return 1 + int(math.log(1 - self._random.random()) / math.log1p(-leave))
