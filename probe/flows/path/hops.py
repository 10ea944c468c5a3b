"""What a trace says: the hops, the path that they make, and whether two paths are the same.

Pure functions of what was sent and what came back. A hop that did not answer is a wildcard: it may be the router that
answered yesterday.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

SILENT: Final = "*"
# Several routers answered one TTL of one flow: balanced by packet, or rerouted in the middle of the trace.
OR: Final = "|"
# 64 bits: a fleet's paths are far from the billions at which two of them would share a hash.
_HASH_HEX_DIGITS: Final = 16

# What a destination or a router answers instead of "time exceeded" (RFC 792, RFC 1812 section 5.2.7.1, RFC 4443
# section 3.1). The marks are traceroute(8)'s: !N, !H, !P, !F, !X.
Unreachable = Literal["network", "host", "protocol", "port", "too_big", "prohibited", "other"]
_UNREACHABLE_4: Final[dict[int, Unreachable]] = {
    0: "network", 1: "host", 2: "protocol", 3: "port", 4: "too_big", 6: "network", 7: "host",
    9: "prohibited", 10: "prohibited", 11: "network", 12: "host", 13: "prohibited",
}  # fmt: skip
_UNREACHABLE_6: Final[dict[int, Unreachable]] = {
    0: "network", 1: "prohibited", 2: "network", 3: "host", 4: "port", 5: "prohibited", 6: "network",
}  # fmt: skip
_TIME_EXCEEDED: Final = {4: (11, 0), 6: (3, 0)}
_DESTINATION_UNREACHABLE: Final = {4: 3, 6: 1}
_TOO_BIG_6: Final = 2


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer to one probe. `delay_ns` is absent when a clock was stepped; `unreachable` when the TTL ran out."""

    address: str
    delay_ns: int | None
    unreachable: Unreachable | None = None
    from_destination: bool = False


@dataclass(slots=True)
class Hop:
    """What became of the probes of one TTL. `offset_ns` is when the first was sent, after the start of the trace."""

    ttl: int
    offset_ns: int
    sent: int = 0
    replies: list[Reply] = field(default_factory=list)

    def addresses(self) -> tuple[str, ...]:
        """Who answered, sorted: the order of answers is chance."""
        return tuple(sorted({reply.address for reply in self.replies}))

    def delay_min_ns(self, address: str | None = None) -> int | None:
        """The shortest delay, of the one at this address if it is given: routers answer late, never early."""
        return _shortest_ns(reply for reply in self.replies if address in {None, reply.address})

    def destination_delay_min_ns(self) -> int | None:
        """The destination's own shortest delay: a router may have answered the same TTL, and sooner."""
        return _shortest_ns(reply for reply in self.replies if reply.from_destination)

    def unreachable(self) -> Unreachable | None:
        """What a router that lets nothing through says; absent for "time exceeded" and for the destination."""
        said = (reply.unreachable for reply in self.replies if not reply.from_destination)
        return next((word for word in said if word is not None), None)

    def is_destination(self) -> bool:
        """Whether the destination itself answered."""
        return any(reply.from_destination for reply in self.replies)

    def ends_the_path(self) -> bool:
        """Whether nothing beyond this hop will ever answer."""
        return self.is_destination() or self.unreachable() is not None


def _shortest_ns(replies: Iterable[Reply]) -> int | None:
    return min((reply.delay_ns for reply in replies if reply.delay_ns is not None), default=None)


def meaning(icmp_version: int, icmp_type: int, icmp_code: int) -> Unreachable | Literal["time_exceeded"] | None:
    """What an ICMP error says to a trace; absent for the kinds that answer no probe."""
    if (icmp_type, icmp_code) == _TIME_EXCEEDED[icmp_version]:
        return "time_exceeded"
    if icmp_version == 6 and icmp_type == _TOO_BIG_6:  # noqa: PLR2004 - an IP version
        return "too_big"
    if icmp_type != _DESTINATION_UNREACHABLE[icmp_version]:
        return None
    words = _UNREACHABLE_4 if icmp_version == 4 else _UNREACHABLE_6  # noqa: PLR2004 - an IP version
    return words.get(icmp_code, "other")


def path_of(hops: Sequence[Hop]) -> str:
    """The path as text: a word per TTL from 1 on, `*` for a silent hop, without the silence after the last answer."""
    words = [OR.join(hop.addresses()) or SILENT for hop in hops]
    while words and words[-1] == SILENT:
        words.pop()
    return " ".join(words)


def hash_of(path: str) -> str:
    """A short name for a path. Equal hashes are equal paths; of different ones ask `paths_agree`."""
    return hashlib.sha256(path.encode()).hexdigest()[:_HASH_HEX_DIGITS]


def paths_agree(first: str, second: str) -> bool:
    """Whether two paths can be the same one, as far as both were seen.

    They disagree where, at one TTL, both know who answered and no router is among both; or where one has reached
    further than the other. A path of which nothing was seen agrees with every other.
    """
    if not first or not second:
        return True
    ours, theirs = first.split(), second.split()
    return len(ours) == len(theirs) and all(map(_words_agree, ours, theirs))


def _words_agree(first: str, second: str) -> bool:
    return SILENT in {first, second} or not set(first.split(OR)).isdisjoint(second.split(OR))
