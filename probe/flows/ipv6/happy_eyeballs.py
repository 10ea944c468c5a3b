"""Which family a program that connects by Happy Eyeballs (RFC 8305) would end up with, from measured times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Winner = Literal["ipv6", "ipv4"]

RESOLUTION_DELAY_S: Final = 0.05  # RFC 8305 section 3: how long an A record waits for the AAAA
CONNECTION_ATTEMPT_DELAY_S: Final = 0.25  # RFC 8305 section 5


@dataclass(frozen=True, slots=True)
class Attempt:
    """One family: when its address was known, and how long its connection then took. Absent: never."""

    resolved_s: float | None
    connect_s: float | None


def winner_of(ipv6: Attempt, ipv4: Attempt) -> Winner | None:
    """Who would be connected first; absent when neither is. IPv6 goes first when its address is there in time."""
    if ipv6.resolved_s is None or ipv4.resolved_s is None:
        return _only(ipv6, ipv4)
    if ipv6.resolved_s <= ipv4.resolved_s + RESOLUTION_DELAY_S:
        first_s, second_s = ipv6.resolved_s, max(ipv4.resolved_s, ipv6.resolved_s + CONNECTION_ATTEMPT_DELAY_S)
        done_6, done_4 = _done(ipv6, first_s), _done(ipv4, second_s)
    else:
        first_s = ipv4.resolved_s + RESOLUTION_DELAY_S
        second_s = max(ipv6.resolved_s, first_s + CONNECTION_ATTEMPT_DELAY_S)
        done_6, done_4 = _done(ipv6, second_s), _done(ipv4, first_s)
    if done_6 is None or done_4 is None:
        return _only(ipv6, ipv4)
    return "ipv6" if done_6 <= done_4 else "ipv4"


def _done(attempt: Attempt, started_s: float) -> float | None:
    return None if attempt.connect_s is None else started_s + attempt.connect_s


def _only(ipv6: Attempt, ipv4: Attempt) -> Winner | None:
    if ipv6.resolved_s is not None and ipv6.connect_s is not None:
        return "ipv6"
    return "ipv4" if ipv4.resolved_s is not None and ipv4.connect_s is not None else None
