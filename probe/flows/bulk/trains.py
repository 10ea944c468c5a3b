"""The rate of a line that was full only part of the time: of the packet trains that came over it.

On a long path the windows of a capped transfer are mostly too small to the end. Slow start gives up early, because it
takes the queue that each burst of its own makes for a full line (HyStart; Ha and Rhee, "Taming the elephants", 2011),
and then they hardly grow. So once in a round trip a train of packets comes as fast as the bottleneck lets it, and
nothing until the next one: the mean says what the windows are, and each train says what the line can do. The rate of
long trains without foreign traffic is the capacity (Dovrolis, Ramanathan and Moore, "What do packet dispersion
techniques measure?", INFOCOM 2001).

Other things make trains too. A sender that spreads its window over a part of the round trip (pacing) makes them as
fast as the window is large; radio that stalls makes gaps, and its mean is what a user gets. So trains count only if the
line stood still for much of the time, in every second round trip at least, and if they got longer and not faster.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

# Samples are 50 ms apart or, when the cap is nearly used up, 5; these are put together.
_INTERVAL_S_MIN: Final = 0.045
# Shares of the usual rate: from here on an interval is of a train, and below that the line is idle. In between it began
# or ended a train, so that a gap is a little longer than its idle intervals.
_TRAIN_RATIO_MIN: Final = 0.7
_IDLE_RATIO_MAX: Final = 0.1
# A paced sender leaves a sixth of the round trip, more than half of it seen to be idle; a lost packet leaves less.
_IDLE_SHARE_MIN: Final = 0.05
# More than that sixth: the window is not spread over the round trip.
_IDLE_SHARE_OF_TRAINS_MIN: Final = 0.25
# Gaps for each round trip that passed. Some are too short to be seen.
_GAPS_PER_ROUND_TRIP_MIN: Final = 0.5
# Two may be as fast by chance, and jitter of some ms is some per cent of one interval: eight average it out.
_TRAINS_MIN: Final = 3
_TRAINS_S_MIN: Final = 0.4
# By so much the rate of each of the last trains may differ from the mean, and that of the first half from the second's:
# more than jitter makes of short trains, less than the growth below would make of a paced sender's.
_LAST_RATIO_MAX: Final = 0.1
_HALVES_RATIO_MAX: Final = 0.15
# Bytes of a usual train of the second half over those of the shortest of the first.
_GROWTH_RATIO_MIN: Final = 1.3
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


@dataclass(frozen=True, slots=True)
class _Train:
    """What came between two gaps, and the intervals in the midst of it."""

    came_bytes: float
    inside: list[Interval]


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


def waits_for_windows(parts: Sequence[Interval], rtt_s: float) -> bool:
    """Whether the line was idle in every second round trip or more often, for a twentieth of the time or more."""
    return _share_of_gaps(parts, rtt_s) >= _IDLE_SHARE_MIN


def inside_trains(parts: Sequence[Interval], rtt_s: float) -> list[Interval] | None:
    """The intervals in the midst of trains, neither their first nor their last one; absent if they show no capacity."""
    if _share_of_gaps(parts, rtt_s) < _IDLE_SHARE_OF_TRAINS_MIN:
        return None
    trains = list(_trains(parts))
    inside = _inside(trains)
    if len(trains) < _TRAINS_MIN or _length_s(inside) < _TRAINS_S_MIN:
        return None
    return inside if _are_level(trains) and _have_grown(trains) else None


def _are_level(trains: Sequence[_Train]) -> bool:
    mean_bps = mean_rate_bps(_inside(trains))
    half = len(trains) // 2
    first_bps, second_bps = mean_rate_bps(_inside(trains[:half])), mean_rate_bps(_inside(trains[half:]))
    last_bps = [mean_rate_bps(train.inside) for train in trains[-_TRAINS_MIN:]]
    return (
        all(abs(rate_bps / mean_bps - 1) <= _LAST_RATIO_MAX for rate_bps in last_bps)
        and abs(first_bps / second_bps - 1) <= _HALVES_RATIO_MAX
    )


def _have_grown(trains: Sequence[_Train]) -> bool:
    """What has the same rate in short and in long trains is the line's: a paced sender's rate grows with its window."""
    came_bytes = [train.came_bytes for train in trains]
    half = len(trains) // 2
    later_bytes = sorted(came_bytes[half:])  # the cap may cut the last one short, and a late sample join two
    return later_bytes[len(later_bytes) // 2] >= _GROWTH_RATIO_MIN * min(came_bytes[:half])


def _share_of_gaps(parts: Sequence[Interval], rtt_s: float) -> float:
    """Of the time between the first and the last train, what lies in gaps shorter than a round trip.

    It is 0 if there are fewer of these than windows make.
    """
    usual_bps = _usual_bps(parts)
    busy = [index for index, part in enumerate(parts) if _is_of_train(part, usual_bps)]
    if not busy:
        return 0.0
    between = parts[busy[0] : busy[-1] + 1]
    groups = itertools.groupby(between, key=lambda part: part.rate_bps < _IDLE_RATIO_MAX * usual_bps)
    gaps_s = [gap_s for is_gap, group in groups if is_gap and (gap_s := _length_s(list(group))) < rtt_s]
    if len(gaps_s) < _GAPS_PER_ROUND_TRIP_MIN * _length_s(between) / rtt_s:
        return 0.0
    return math.fsum(gaps_s) / _length_s(between)


def mean_rate_bps(parts: Sequence[Interval]) -> float:
    """All bytes over all time."""
    return math.fsum(part.came_bytes for part in parts) * _BITS / _length_s(parts)


def _inside(trains: Sequence[_Train]) -> list[Interval]:
    return list(itertools.chain.from_iterable(train.inside for train in trains))


def _trains(parts: Sequence[Interval]) -> Iterator[_Train]:
    """Those that are long enough to have a midst."""
    usual_bps = _usual_bps(parts)
    for is_gap, group in itertools.groupby(parts, key=lambda part: part.rate_bps < _IDLE_RATIO_MAX * usual_bps):
        train = list(group)
        threes = zip(train, train[1:], train[2:], strict=False)
        inside = [three[1] for three in threes if all(_is_of_train(part, usual_bps) for part in three)]
        if not is_gap and inside:
            yield _Train(math.fsum(part.came_bytes for part in train), inside)


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
