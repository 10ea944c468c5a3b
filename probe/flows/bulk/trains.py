"""The rate of a line that was full only part of the time: of the packet trains that came over it.

On a long path the windows of a capped transfer are mostly too small to the end. Slow start gives up early, because it
takes the queue that each burst of its own makes for a full line (HyStart; Ha and Rhee, "Taming the elephants", 2011),
and then they hardly grow. So once in a round trip a train of packets comes as fast as the bottleneck lets it, and
nothing until the next one: the mean says what the windows are, and each train says what the line can do. The rate of
long trains without foreign traffic is the capacity (Dovrolis, Ramanathan and Moore, "What do packet dispersion
techniques measure?", INFOCOM 2001).

Senders that spread a window over the round trip (pacing) make no trains, or faster ones each time: trains count only if
the line stood still between them for much of the time, and if the last of them were all as fast.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

# As long as samples are apart; those that come sooner are put together.
_INTERVAL_S_MIN: Final = 0.045
# Half of all bytes come no faster than a rate that the line has in most trains; what is well below it is no train.
_TRAIN_RATIO_MIN: Final = 0.7
_IDLE_RATIO_MAX: Final = 0.1
# Less than this may be chance, a stall of the radio for one; a paced sender leaves a sixth of the time.
_IDLE_SHARE_MIN: Final = 0.25
_TRAINS_MIN: Final = 3
_LEVEL_RATIO: Final = 0.1
_TRAINS_S_MIN: Final = 0.4
_BITS: Final = 8


@dataclass(frozen=True, slots=True)
class Interval:
    """Between two samples: its length in seconds, and what came in it."""

    length_s: float
    came_bytes: float

    @property
    def rate_bps(self) -> float:
        """Its mean."""
        return self.came_bytes * _BITS / self.length_s


def intervals(times_s: Sequence[float], counts: Sequence[int]) -> list[Interval]:
    """What came between samples that are some time apart; the last, if they are closer, are left out.

    Args:
        times_s: of the samples, rising.
        counts: the bytes that had come by then, as many.
    """
    found, before_s, before_bytes = [], times_s[0], counts[0]
    for time_s, count in zip(times_s, counts, strict=True):
        if time_s - before_s >= _INTERVAL_S_MIN:
            found.append(Interval(time_s - before_s, count - before_bytes))
            before_s, before_bytes = time_s, count
    return found


def idle_share(parts: Sequence[Interval]) -> float:
    """Of the time between the first and the last train, how much the line had next to nothing to carry."""
    usual_bps = _usual_bps(parts)
    busy = [index for index, part in enumerate(parts) if _is_of_train(part, usual_bps)]
    if not busy:
        return 0.0
    between = parts[busy[0] : busy[-1] + 1]
    return _length_s([part for part in between if part.rate_bps < _IDLE_RATIO_MAX * usual_bps]) / _length_s(between)


def inside_trains(parts: Sequence[Interval]) -> list[Interval] | None:
    """The intervals that lie within trains, neither their first nor their last one; absent if they show no capacity."""
    if idle_share(parts) < _IDLE_SHARE_MIN:
        return None
    trains = list(_trains(parts))
    inside = list(itertools.chain.from_iterable(trains))
    if len(trains) < _TRAINS_MIN or _length_s(inside) < _TRAINS_S_MIN:
        return None
    mean_bps = mean_rate_bps(inside)
    are_level = all(abs(mean_rate_bps(train) / mean_bps - 1) <= _LEVEL_RATIO for train in trains[-_TRAINS_MIN:])
    return inside if are_level else None


def mean_rate_bps(parts: Sequence[Interval]) -> float:
    """All bytes over all time."""
    return math.fsum(part.came_bytes for part in parts) * _BITS / _length_s(parts)


def _trains(parts: Sequence[Interval]) -> Iterator[list[Interval]]:
    usual_bps = _usual_bps(parts)
    for is_of_train, group in itertools.groupby(parts, key=lambda part: _is_of_train(part, usual_bps)):
        inside = list(group)[1:-1]
        if is_of_train and inside:
            yield inside


def _is_of_train(part: Interval, usual_bps: float) -> bool:
    return part.came_bytes > 0 and part.rate_bps >= _TRAIN_RATIO_MIN * usual_bps


def _usual_bps(parts: Sequence[Interval]) -> float:
    """The median of the rates, each weighted by its bytes."""
    rest_bytes = math.fsum(part.came_bytes for part in parts) / 2
    for part in sorted(parts, key=lambda part: part.rate_bps):
        rest_bytes -= part.came_bytes
        if rest_bytes <= 0:
            return part.rate_bps
    return 0.0


def _length_s(parts: Sequence[Interval]) -> float:
    return math.fsum(part.length_s for part in parts)
