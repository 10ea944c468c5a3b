"""The rate of a line in the course of time.

A plan is a function of the time since the line's start and of nothing else: who knows the profile, the seed and the
start can tell afterwards what the line enforced between any two moments, without having watched it.
"""

from __future__ import annotations

import bisect
import itertools
import random
from typing import Protocol

from fleet_controller.lab.profile import Direction, LinkProfile, RateStep, RateWander

_NS_PER_S = 1_000_000_000
# Where a wandering rate is cut off, as a share of its mean: symmetric, so that the mean stays the profile's rate.
_WANDER_RATIO_MIN, _WANDER_RATIO_MAX = 0.2, 1.8


class RatePlan(Protocol):
    """What the rate is, and until when."""

    def at(self, elapsed_ns: int) -> tuple[int, int]:
        """The rate in bit/s so long after the start, and the moment at which it next may change."""
        ...


class Steps:
    """Rates that take turns, over and over."""

    def __init__(self, rate_bps: int, steps: tuple[RateStep, ...]) -> None:
        self._rates_bps = [max(round(rate_bps * step.ratio), 1) for step in steps]
        self._ends_ns = list(itertools.accumulate(round(step.seconds * _NS_PER_S) for step in steps))

    def at(self, elapsed_ns: int) -> tuple[int, int]:
        """The rate of the step that is on, and its end."""
        turns, into_ns = divmod(elapsed_ns, self._ends_ns[-1])
        index = bisect.bisect_right(self._ends_ns, into_ns)
        return self._rates_bps[index], turns * self._ends_ns[-1] + self._ends_ns[index]


class Wander:
    """A first-order autoregressive series, computed once and in order whatever is asked first."""

    def __init__(self, rate_bps: int, wander: RateWander, seed: int | str) -> None:
        self._rate_bps, self._wander = rate_bps, wander
        self._step_ns = round(wander.step_s * _NS_PER_S)
        self._random = random.Random(f"wander of {seed}")  # noqa: S311 - reproducible on purpose
        self._deviation = self._random.gauss(0.0, wander.variation_ratio)
        self._rates_bps: list[int] = []

    def at(self, elapsed_ns: int) -> tuple[int, int]:
        """The rate of the step that is on, and its end."""
        index = elapsed_ns // self._step_ns
        while len(self._rates_bps) <= index:
            self._rates_bps.append(self._next_bps())
        return self._rates_bps[index], (index + 1) * self._step_ns

    def _next_bps(self) -> int:
        ratio = min(max(1 + self._deviation, _WANDER_RATIO_MIN), _WANDER_RATIO_MAX)
        correlation = self._wander.correlation_ratio
        shock = self._wander.variation_ratio * (1 - correlation**2) ** 0.5
        self._deviation = correlation * self._deviation + self._random.gauss(0.0, shock)
        return max(round(self._rate_bps * ratio), 1)


def rate_plan(profile: LinkProfile, direction: Direction, seed: int) -> RatePlan | None:
    """How the rate of one direction changes; absent when it does not."""
    rate_bps = profile.rate_bps(direction)
    if profile.rate_steps:
        return Steps(rate_bps, profile.rate_steps)
    if profile.rate_wander is not None:
        return Wander(rate_bps, profile.rate_wander, f"{direction} {seed}")
    return None


def mean_bps(plan: RatePlan, from_ns: int, to_ns: int) -> float:
    """The time-average of the rate between two moments after the start.

    Raises:
        ValueError: the interval is empty or begins before the start.
    """
    if not 0 <= from_ns < to_ns:
        raise ValueError(f"no interval: {from_ns} to {to_ns} ns")
    weighted, now_ns = 0, from_ns
    while now_ns < to_ns:
        rate_bps, until_ns = plan.at(now_ns)
        until_ns = min(until_ns, to_ns)
        weighted += rate_bps * (until_ns - now_ns)
        now_ns = until_ns
    return weighted / (to_ns - from_ns)


def least_ratio(profile: LinkProfile) -> float:
    """The lowest rate that the line comes to, as a share of the profile's."""
    if profile.rate_wander is not None:
        return _WANDER_RATIO_MIN
    return min((step.ratio for step in profile.rate_steps), default=1.0)
