"""Responsiveness under working conditions (draft-ietf-ippm-responsiveness): the arithmetic, without any input.

Time is cut into intervals. First the goodput has to settle, then the responsiveness; both are judged by the standard
deviation of their last four values. What is reported is of the last four intervals.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

# The draft's names and values: MAD, SDT and TMP.
MOVING_INTERVALS: Final = 4
TOLERANCE_RATIO: Final = 0.05
TRIMMED_MEAN_RATIO: Final = 0.95
_MINUTE_S: Final = 60.0
_BITS: Final = 8


class Confidence(StrEnum):
    """How far a stage of the measurement came. A closed list, the draft's."""

    LOW = "low"  # not even four intervals
    MEDIUM = "medium"  # four or more, and not settled
    HIGH = "high"  # settled


@dataclass(frozen=True, slots=True)
class ForeignProbe:
    """One request on a connection of its own: when its answer came, and its three times in seconds.

    `tcp_s` is the TCP handshake, `tls_s` the TLS handshake divided by its round trips (absent without TLS), `http_s`
    from the request to the whole answer of one byte.
    """

    ended_s: float
    tcp_s: float
    http_s: float
    tls_s: float | None = None


@dataclass(frozen=True, slots=True)
class SelfProbe:
    """What a connection that carries the load took for one round trip, by the kernel's own estimate.

    The draft (section "Measuring Responsiveness") allows it in place of a request on that connection where HTTP/1.1
    cannot put one between the data.
    """

    seen_s: float
    round_trip_s: float


@dataclass(frozen=True, slots=True)
class Responsiveness:
    """Round trips per minute, and the trimmed means in seconds that they come from.

    `rpm` is the mean of `foreign_rpm` and `self_rpm`; absent where one of them is.
    """

    rpm: float | None
    foreign_rpm: float | None
    self_rpm: float | None
    tcp_s: float | None
    tls_s: float | None
    http_s: float | None
    self_s: float | None
    probes: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found in the end."""

    responsiveness: Responsiveness
    load_bps: float | None
    load_confidence: Confidence
    confidence: Confidence


def trimmed_mean(values: Sequence[float]) -> float | None:
    """The mean of the lowest 95 % of the values (single-sided trimmed mean); at least one value stays."""
    if not values:
        return None
    kept = sorted(values)[: max(1, math.floor(len(values) * TRIMMED_MEAN_RATIO + 1e-9))]
    return math.fsum(kept) / len(kept)


def responsiveness_of(foreign: Iterable[ForeignProbe], own: Iterable[SelfProbe]) -> Responsiveness:
    """The draft's formula: with TLS the foreign part has three times of equal weight, without it two."""
    probes = list(foreign)
    tcp_s = trimmed_mean([probe.tcp_s for probe in probes])
    tls_s = trimmed_mean([probe.tls_s for probe in probes if probe.tls_s is not None])
    http_s = trimmed_mean([probe.http_s for probe in probes])
    self_s = trimmed_mean([probe.round_trip_s for probe in own])
    parts = [part for part in (tcp_s, tls_s, http_s) if part is not None]
    foreign_rpm = _rpm(math.fsum(parts) / len(parts)) if parts else None
    self_rpm = None if self_s is None else _rpm(self_s)
    return Responsiveness(
        rpm=None if foreign_rpm is None or self_rpm is None else (foreign_rpm + self_rpm) / 2,
        foreign_rpm=foreign_rpm,
        self_rpm=self_rpm,
        tcp_s=tcp_s,
        tls_s=tls_s,
        http_s=http_s,
        self_s=self_s,
        probes=len(probes),
    )


def is_settled(values: Sequence[float]) -> bool:
    """Whether the last four differ by at most 5 % (standard deviation over the last value)."""
    last = values[-MOVING_INTERVALS:]
    if len(last) < MOVING_INTERVALS or last[-1] <= 0:
        return False
    return statistics.pstdev(last) <= TOLERANCE_RATIO * last[-1]


class WorkingConditions:
    """Follows one loaded direction. Times are monotonic seconds, `began_s` is when the load began.

    Args:
        began_s: the first request of the load.
        interval_s: the length of an interval (the draft's ID).
    """

    def __init__(self, began_s: float, interval_s: float) -> None:
        self._began_s, self._interval_s = began_s, interval_s
        self._bytes: list[int] = [0]
        self._ends_s: list[float] = [began_s]
        self._foreign: list[ForeignProbe] = []
        self._own: list[SelfProbe] = []
        self._goodputs_bps: list[float] = []
        self._rpms: list[float] = []
        self._load_is_settled = False
        self._is_settled = False

    @property
    def intervals(self) -> int:
        """How many intervals have ended."""
        return len(self._ends_s) - 1

    @property
    def last_goodput_bps(self) -> float:
        """The moving average of the goodput; 0 before the first interval has ended."""
        return self._goodputs_bps[-1] if self._goodputs_bps else 0.0

    def add_foreign(self, probe: ForeignProbe) -> None:
        """Take a request that was answered."""
        self._foreign.append(probe)

    def add_own(self, probe: SelfProbe) -> None:
        """Take a round trip of a connection that carries the load."""
        self._own.append(probe)

    def end_interval(self, now_s: float, total_bytes: int) -> bool:
        """Close an interval; says whether everything has settled and the load may end."""
        self._bytes.append(max(total_bytes, self._bytes[-1]))
        self._ends_s.append(now_s)
        self._goodputs_bps.append(self._goodput_bps())
        if self._load_is_settled:
            rpm = self._now().rpm
            if rpm is not None:
                self._rpms.append(rpm)
            self._is_settled = is_settled(self._rpms)
        else:
            self._load_is_settled = is_settled(self._goodputs_bps)
        return self._is_settled

    def verdict(self) -> Verdict:
        """What was found, settled or not."""
        return Verdict(
            responsiveness=self._now(),
            load_bps=self._goodputs_bps[-1] if self._goodputs_bps else None,
            load_confidence=_confidence(len(self._goodputs_bps), settled=self._load_is_settled),
            confidence=_confidence(len(self._rpms), settled=self._is_settled),
        )

    @property
    def window_s(self) -> tuple[float, float]:
        """The last four intervals: what the verdict is about."""
        return self._ends_s[max(0, len(self._ends_s) - 1 - MOVING_INTERVALS)], self._ends_s[-1]

    def _now(self) -> Responsiveness:
        since_s, until_s = self.window_s
        return responsiveness_of(
            (probe for probe in self._foreign if since_s <= probe.ended_s <= until_s),
            (probe for probe in self._own if since_s <= probe.seen_s <= until_s),
        )

    def _goodput_bps(self) -> float:
        first = max(0, len(self._ends_s) - 1 - MOVING_INTERVALS)
        passed_s = self._ends_s[-1] - self._ends_s[first]
        return (self._bytes[-1] - self._bytes[first]) * _BITS / passed_s if passed_s > 0 else 0.0


def _rpm(round_trip_s: float) -> float | None:
    return _MINUTE_S / round_trip_s if round_trip_s > 0 else None


def _confidence(values: int, *, settled: bool) -> Confidence:
    if settled:
        return Confidence.HIGH
    return Confidence.MEDIUM if values >= MOVING_INTERVALS else Confidence.LOW
