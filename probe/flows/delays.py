"""What a series of answered packets says: counts, delay, delay variation, and on which way packets were lost.

Pure functions of who was sent and who came back. Delay statistics are of the packets that arrived (RFC 5481 section
1: lost packets have no delay and are counted apart); with none, every delay is absent.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from probe.clock import NS_PER_S

# The high percentile of PDV. RFC 5481 section 4.2 takes 99.9 % of long streams; short series have no such tail.
HIGH_QUANTILE = 0.95


@dataclass(frozen=True, slots=True)
class Arrival:
    """One reply, in order of arrival.

    Attributes:
        sequence: the number of the packet that it answers.
        delay_ns: round-trip delay less the time spent in the reflector; absent when no clock vouches for it.
        reflector_sequence: how many packets the reflector had answered before; absent when it does not count.
    """

    sequence: int
    delay_ns: int | None
    reflector_sequence: int | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """How many packets met which fate."""

    received: int
    duplicated: int
    reordered: int
    delays_rejected: int


@dataclass(frozen=True, slots=True)
class DelaySummary:
    """Delay and its variation in seconds, of one series."""

    min_s: float | None = None
    median_s: float | None = None
    p95_s: float | None = None
    max_s: float | None = None
    mean_s: float | None = None
    pdv_s: float | None = None
    ipdv_mean_abs_s: float | None = None


@dataclass(frozen=True, slots=True)
class LossSplit:
    """Packets lost on each way, up to the last one that was answered."""

    forward: int
    backward: int


def first_arrivals(arrivals: Iterable[Arrival]) -> list[Arrival]:
    """Drop the repeats: the first reply to each packet, in order of arrival."""
    first: dict[int, Arrival] = {}
    for arrival in arrivals:
        first.setdefault(arrival.sequence, arrival)
    return list(first.values())


def count(arrivals: Sequence[Arrival]) -> Counts:
    """Count what came back.

    A repeat is a duplicate (RFC 5560). A packet is reordered when one sent after it arrived before it (RFC 4737
    section 3.3); repeats are not looked at again for that.
    """
    first = first_arrivals(arrivals)
    reordered, highest = 0, -1
    for arrival in first:
        reordered += arrival.sequence < highest
        highest = max(highest, arrival.sequence)
    return Counts(
        received=len(first),
        duplicated=len(arrivals) - len(first),
        reordered=reordered,
        delays_rejected=sum(arrival.delay_ns is None for arrival in first),
    )


def summarise(arrivals: Iterable[Arrival]) -> DelaySummary:
    """Delay (RFC 2681), PDV = p95 - minimum (RFC 5481) and mean |IPDV| of consecutive packets (RFC 3393)."""
    delays = {a.sequence: a.delay_ns / NS_PER_S for a in first_arrivals(arrivals) if a.delay_ns is not None}
    if not delays:
        return DelaySummary()
    ordered = sorted(delays.values())
    p95_s = quantile(ordered, HIGH_QUANTILE)
    return DelaySummary(
        min_s=ordered[0],
        median_s=statistics.median(ordered),
        p95_s=p95_s,
        max_s=ordered[-1],
        # The quotient of a float sum may end one bit outside of what it is the mean of.
        mean_s=min(max(statistics.fmean(ordered), ordered[0]), ordered[-1]),
        # One packet does not vary.
        pdv_s=p95_s - ordered[0] if len(ordered) > 1 else None,
        ipdv_mean_abs_s=_ipdv_mean_abs(delays),
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the sample does not exceed (RFC 2330 section 11.3).

    Args:
        ordered: a sample in rising order, not empty.
        share: between 0 and 1.
    """
    rank = max(math.ceil(share * len(ordered)), 1)
    return ordered[rank - 1]


def _ipdv_mean_abs(delays: dict[int, float]) -> float | None:
    """Over the pairs of neighbours in sending order that both have a delay: a loss breaks two pairs."""
    steps = [abs(delay - delays[number - 1]) for number, delay in delays.items() if number - 1 in delays]
    return statistics.fmean(steps) if steps else None


def split_loss(arrivals: Sequence[Arrival], first_sequence: int) -> LossSplit | None:
    """Tell packets lost on the way there from replies lost on the way back (RFC 8762 section 4.2, stateful mode).

    The reflector numbers its replies from 0 in the order in which packets reached it. What it did not number up to
    the last answered packet was lost on the way there; what it numbered and we miss, on the way back. Packets after
    the last answered one are in neither count, as nobody knows. `first_sequence` must not be 0: a stateless
    reflector repeats our numbers, and only a different origin tells it from a stateful one.

    Returns:
        The split, or absent when nothing came back, or the reflector keeps no count, or a count that cannot be.
    """
    numbers = [(a.sequence, a.reflector_sequence) for a in arrivals if a.reflector_sequence is not None]
    if not numbers or len(numbers) < len(arrivals) or all(theirs == ours for ours, theirs in numbers):
        return None
    answered = {ours for ours, _ in numbers}
    # One packet answered under two numbers reached the reflector twice.
    doubled_forward = len(set(numbers)) - len(answered)
    reached = max(theirs for _, theirs in numbers) + 1 - doubled_forward
    sent = max(answered) - first_sequence + 1
    split = LossSplit(forward=sent - reached, backward=reached - len(answered))
    return split if split.forward >= 0 and split.backward >= 0 else None
