"""How long the streams of a transfer may be left to the kernel between two looks at them.

A wake-up for each packet would cost ten times the CPU. Looked at from time to time, the streams must keep the line
busy: what waits to be sent, or what finds room to be received, has to last until the next look, and until one that
comes late.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from probe.flows.bulk.stream import Direction

PAUSE_MIN_S: Final = 0.001
PAUSE_FIRST_S: Final = 0.002  # until the round trip is known
PAUSE_S_MAX: Final = 0.05
# The rate has stopped rising, but streams that have only begun may yet make it rise.
_LEVEL_S_MAX: Final = 0.03
_RISING_S_MAX: Final = 0.015
# A cap mostly ends within a second, most of it ramp, and each part of it waits to be asked for: nothing may be late.
_CAPPED_S_MAX: Final = 0.004
# Of the time that a stream lasts. While the rate rises that is soon no longer true.
_SHARE: Final = 1 / 2
# Of what waits at the bottleneck; and from deep buffers no more than this, or a stream would stand still for long.
# Where no stream lasts as long, their sockets are too small to make up for it.
_RESERVE_SHARE: Final = 3 / 4
_RESERVE_S_MAX: Final = 0.03
_RISING_SHARE: Final = 1 / 4
_GROWN_S: Final = 0.3  # a stream's own slow start, at most
_GROWN_SHARE: Final = 1 / 2


@dataclass(frozen=True, slots=True)
class Lasting:
    """A stream: for how long its payload has been moving, and how long it can be left alone, in seconds."""

    moves_for_s: float
    lasts_s: float


@dataclass(frozen=True, slots=True)
class Phase:
    """Where the transfer stands: `is_calm` when the rate has not risen for a while, `is_level` not in the last samples.

    `rtt_s` is the least round trip that was seen, `queue_s` how much longer all packets travel now,
    because they wait at the bottleneck; 0 where that must not change.
    """

    direction: Direction
    rtt_s: float
    queue_s: float
    is_capped: bool
    is_calm: bool
    is_level: bool


def first_pause_s(phase: Phase) -> float:
    """Until the first sample."""
    return PAUSE_MIN_S if phase.is_capped else max(PAUSE_FIRST_S, _rising_s_min(phase))


def pause_s(phase: Phase, streams: Sequence[Lasting]) -> float:
    """Until the next sample."""
    grown = _grown(streams)
    lasts_s = min((stream.lasts_s for stream in grown), default=0.0)
    reserve_s = min(_reserve_s(phase), max((stream.lasts_s for stream in grown), default=0.0))
    is_calm = phase.is_calm and len(grown) == len(streams)
    if phase.is_capped:
        return _within(PAUSE_MIN_S, lasts_s * _SHARE, _CAPPED_S_MAX) if is_calm else PAUSE_MIN_S
    if is_calm:
        return _within(PAUSE_MIN_S, lasts_s * _SHARE + reserve_s, PAUSE_S_MAX)
    if phase.is_level:
        return _within(PAUSE_MIN_S, lasts_s * _SHARE + reserve_s, _LEVEL_S_MAX)
    return _within(_rising_s_min(phase), lasts_s * _RISING_SHARE, _RISING_S_MAX)


def _reserve_s(phase: Phase) -> float:
    """What an upload has waiting at the bottleneck: the line is busy with it while a stream has nothing to send."""
    return min(phase.queue_s, _RESERVE_S_MAX) * _RESERVE_SHARE if phase.direction == "upload" else 0.0


def _grown(streams: Sequence[Lasting]) -> list[Lasting]:
    """Without those that have begun after the others.

    They use up whatever they are given: looked at for their sake, all would be.
    """
    oldest_s = max((stream.moves_for_s for stream in streams), default=0.0)
    return [stream for stream in streams if stream.moves_for_s >= min(_GROWN_S, oldest_s * _GROWN_SHARE)]


def _rising_s_min(phase: Phase) -> float:
    """Of a send buffer that was filled up, a round trip: the kernel has room there for several windows.

    In slow start the next window is twice as large. Of a receive window what is on its way may need all.
    """
    return (
        _within(PAUSE_MIN_S, phase.rtt_s + phase.queue_s, _RISING_S_MAX) if phase.direction == "upload" else PAUSE_MIN_S
    )


def _within(least_s: float, wanted_s: float, most_s: float) -> float:
    return max(least_s, min(most_s, wanted_s))
