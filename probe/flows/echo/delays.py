"""What a series of answered packets says: counts, delay, delay variation, and on which way packets were lost.

Pure functions of who was sent and who came back. Delay statistics are of the packets that arrived (RFC 5481 section
1: lost packets have no delay and are counted apart); with none, every delay is absent.
"""

from __future__ import annotations

import bisect
import itertools
import math
import statistics
from collections.abc import Collection, Iterable, Sequence
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
        sent_by_then: the highest number that had been sent when it was read; absent when nobody noted it.
    """

    sequence: int
    delay_ns: int | None
    reflector_sequence: int | None = None
    sent_by_then: int | None = None


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
    """Packets lost on each way, up to the last one that was answered; `unattributed` are those after it."""

    forward: int
    backward: int
    unattributed: int


@dataclass(frozen=True, slots=True)
class LossPattern:
    """How the losses of a series lie (RFC 3357), in packets of the series.

    Attributes:
        bursts: loss periods: runs of packets lost one after another (section 4.2).
        burst_max_packets: the longest of them; 0 without a loss.
        distance_median_packets: the median loss distance, from one lost packet to the next (section 4.1): 1 when most
            losses come in bursts. Absent with fewer than two losses.
    """

    bursts: int
    burst_max_packets: int
    distance_median_packets: float | None


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


def loss_pattern(sent: Sequence[int], not_lost: Collection[int]) -> LossPattern:
    """Loss periods and loss distance (RFC 3357 section 4).

    Args:
        sent: the numbers of the packets that were sent, in order. One that never left is no part of the stream: its
            neighbours in `sent` are neighbours.
        not_lost: those that were answered.
    """
    lost_at = [place for place, number in enumerate(sent) if number not in not_lost]
    distances = [later - earlier for earlier, later in itertools.pairwise(lost_at)]
    bursts, length, longest = 0, 0, 0
    for distance in (0, *distances) if lost_at else ():
        bursts, length = (bursts, length + 1) if distance == 1 else (bursts + 1, 1)
        longest = max(longest, length)
    return LossPattern(
        bursts=bursts,
        burst_max_packets=longest,
        distance_median_packets=float(statistics.median(distances)) if distances else None,
    )


def split_loss(sent: Sequence[int], arrivals: Sequence[Arrival]) -> LossSplit | None:
    """Tell packets lost on the way there from replies lost on the way back (RFC 8762 section 4.2, stateful mode).

    The reflector numbers its replies from 0 in the order in which packets reached it. What it did not number up to
    the last answered packet was lost on the way there; what it numbered and we miss, on the way back. Of the packets
    after the last answered one nobody knows on which way they were lost. A packet that overtook others on the way there
    and is the last one answered hides those from the reflector's count: they are taken for lost there then.

    Args:
        sent: the numbers of the packets that were sent, in rising order. They must not begin at 0: a stateless
            reflector repeats our numbers, and only a different origin tells it from a stateful one.
        arrivals: what came back.

    Returns:
        The split, or absent when nothing came back, or the reflector keeps no count, or a count that cannot be, such as
        that of one that was started anew in the middle.
    """
    numbers = [(a.sequence, a.reflector_sequence) for a in arrivals if a.reflector_sequence is not None]
    if not numbers or len(numbers) < len(arrivals) or all(theirs == ours for ours, theirs in numbers):
        return None
    if _began_anew(arrivals):
        return None
    answered = {ours for ours, _ in numbers}
    # One packet answered under two numbers reached the reflector twice.
    doubled_forward = len(set(numbers)) - len(answered)
    reached = max(theirs for _, theirs in numbers) + 1 - doubled_forward
    sent_until = bisect.bisect_right(sent, max(answered))
    forward, backward = sent_until - reached, reached - len(answered)
    if forward < 0 or backward < 0:
        return None
    return LossSplit(forward=forward, backward=backward, unattributed=len(sent) - sent_until)


def _began_anew(arrivals: Sequence[Arrival]) -> bool:
    """Whether the reflector gave a number twice, or a lower one to a packet that was sent after a higher one was read.

    However packets overtake each other, what is sent after an answer has come is counted after it.
    """
    numbers = [-1 if one.reflector_sequence is None else one.reflector_sequence for one in arrivals]
    pairs = list(zip(numbers, arrivals, strict=True))
    given: dict[int, int] = {}
    if any(given.setdefault(theirs, one.sequence) != one.sequence for theirs, one in pairs):
        return True
    # In the order of reading, in which both rise.
    sent_by_then = [one.sent_by_then or 0 for one in arrivals]
    highest = [-1, *itertools.accumulate(numbers, max)]
    return any(
        theirs < highest[bisect.bisect_left(sent_by_then, one.sequence)]
        for theirs, one in pairs
        if one.sent_by_then is not None
    )
