"""Receipts: which numbers of each agent's results are durable here, and which can never come.

Nothing of this is on disk. After a restart the first report of a sequence space says where its agent stands: below
its floor everything was taken, or given up by the agent itself.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from fleet_controller.records import Taken
from probe.messages import Receipt

# Two boots' worth of 10,000 agents. An agent that is forgotten starts again at its floor; that costs repeats only.
SPACES_MAX: Final = 20_000
# A receipt stays a small message. What is forgotten is sent again by the agent, and is then a repeat.
RANGES_MAX: Final = 64


@dataclass(slots=True)
class Space:
    """What was taken of one sequence space: everything to `contiguous`, and the inclusive `ranges` beyond it."""

    contiguous: int
    ranges: list[tuple[int, int]] = field(default_factory=list)

    def holds(self, sequence: int) -> bool:
        """Whether this number was taken already."""
        if sequence <= self.contiguous:
            return True
        place = bisect_left(self.ranges, (sequence + 1,)) - 1
        return place >= 0 and self.ranges[place][1] >= sequence

    def add(self, first: int, last: int) -> None:
        """Take the numbers from `first` to `last`."""
        kept: list[tuple[int, int]] = []
        for low, high in self.ranges:
            if high + 1 < first or low > last + 1:
                kept.append((low, high))
            else:
                first, last = min(first, low), max(last, high)
        kept.append((first, last))
        kept.sort()
        while kept and kept[0][0] <= self.contiguous + 1:
            self.contiguous = max(self.contiguous, kept.pop(0)[1])
        self.ranges = kept[:RANGES_MAX]

    def raise_floor(self, floor: int) -> int:
        """All below `floor` will not come any more; gives how many of them never came."""
        if floor <= self.contiguous + 1:
            return 0
        below = sum(min(high, floor - 1) - low + 1 for low, high in self.ranges if low < floor)
        lost = floor - 1 - self.contiguous - below
        self.add(self.contiguous + 1, floor - 1)
        return lost


class ReceiptBook:
    """The sequence spaces of every agent seen lately.

    Attributes:
        duplicates: results that had been taken before.
        lost: numbers that their agent gave up before they were taken: holes in what was measured.
        forgotten: spaces put out to keep the book bounded.
    """

    def __init__(self, spaces_max: int = SPACES_MAX) -> None:
        self._spaces: OrderedDict[tuple[str, str], Space] = OrderedDict()
        self._spaces_max = spaces_max
        self.duplicates = 0
        self.lost = 0
        self.forgotten = 0

    def take(self, all_taken: Iterable[Taken]) -> list[Receipt]:
        """Enter what is durable now; one receipt for each space that anything came for."""
        touched: dict[tuple[str, str], Space] = {}
        for taken in all_taken:
            touched[taken.agent_id, taken.sequence_space] = self._enter(taken)
        return [_receipt(*key, space) for key, space in touched.items()]

    def _enter(self, taken: Taken) -> Space:
        space = self._space(taken)
        self.lost += space.raise_floor(taken.sequence_floor)
        for first, last in _runs(taken.sequences):
            self.duplicates += sum(1 for number in range(first, last + 1) if space.holds(number))
            space.add(first, last)
        self.duplicates += len(taken.sequences) - len(set(taken.sequences))
        return space

    def _space(self, taken: Taken) -> Space:
        key = (taken.agent_id, taken.sequence_space)
        space = self._spaces.get(key)
        if space is None:
            space = self._spaces[key] = Space(contiguous=taken.sequence_floor - 1)
        self._spaces.move_to_end(key)
        while len(self._spaces) > self._spaces_max:
            self._spaces.popitem(last=False)
            self.forgotten += 1
        return space


def _runs(sequences: Iterable[int]) -> list[tuple[int, int]]:
    """Numbers as inclusive ranges."""
    runs: list[tuple[int, int]] = []
    for number in sorted(set(sequences)):
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def _receipt(agent_id: str, sequence_space: str, space: Space) -> Receipt:
    return Receipt(
        agent_id=agent_id, sequence_space=sequence_space, contiguous=space.contiguous, beyond=tuple(space.ranges)
    )
