"""The largest packet that a path carries whole, found by asking for echoes of it (RFC 8899 in spirit, RFC 4821).

Packets are sent with "don't fragment", whatever the kernel believes of the path. A router that cannot pass one on must
say so (RFC 1191, RFC 8201). One that says nothing, or whose word is filtered on the way, makes a black hole: small
packets work, connections open, and hang with the first full segment (RFC 2923).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

# What is tried first when the full size does not pass: what IPv6 promises (RFC 8200 section 5), what every IPv4 host
# takes (RFC 1122 section 3.3.2), and what hardly differs from the packets that were answered before.
_FLOORS_BYTES: Final = (1280, 576, 128)


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of packets of one size: echoed, or refused as too big, or neither.

    `mtu_bytes` is what a router says that it can carry; 0 when it says only that the packet was too big.
    """

    echoed: bool
    mtu_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class PathMtu:
    """What was found.

    Attributes:
        path_mtu_bytes: the largest IP packet that was echoed; absent when none was.
        is_black_hole: whether larger packets vanish without a word; absent when that cannot be told.
        reported_bytes: the smallest MTU that a router reported; absent when none did.
        sizes_asked: how many sizes it took.
    """

    path_mtu_bytes: int | None
    is_black_hole: bool | None
    reported_bytes: int | None
    sizes_asked: int


async def find(ask: Callable[[int], Awaitable[Answer]], full_bytes: int) -> PathMtu:
    """Find the largest packet up to `full_bytes`. At most 16 sizes are asked.

    Args:
        ask: sends packets of a size in bytes (IP header included) and says what became of them.
        full_bytes: what the interface can send.
    """
    search = _Search(ask)
    if await search.passes(full_bytes):
        return search.found(full_bytes)
    low, high = await search.bounds(full_bytes)
    if low is None:
        return search.found(None)
    largest = await search.between(low, high)
    if not search.is_silent_above(largest):
        return search.found(largest)
    # An outage in the middle of the search looks like a black hole: only one that is still there is one.
    if await search.passes(full_bytes):
        return search.found(full_bytes)
    return search.found(largest, is_black_hole=True) if await search.passes(largest) else search.found(None)


class _Search:
    def __init__(self, ask: Callable[[int], Awaitable[Answer]]) -> None:
        self._ask = ask
        self._asked = 0
        self._reported: int | None = None

    async def passes(self, size_bytes: int) -> bool:
        """Whether packets of this size are echoed."""
        self._asked += 1
        answer = await self._ask(size_bytes)
        if answer.mtu_bytes is not None:
            self._reported = answer.mtu_bytes if self._reported is None else min(self._reported, answer.mtu_bytes)
        return answer.echoed

    async def bounds(self, high: int) -> tuple[int | None, int]:
        """A size that passes and one that does not, given one that does not; the first absent when none passes."""
        for size_bytes in _FLOORS_BYTES:
            if size_bytes < high:
                if await self.passes(size_bytes):
                    return size_bytes, high
                high = size_bytes
        return None, high

    async def between(self, low: int, high: int) -> int:
        """The largest size that passes, given one that does and one that does not."""
        while high - low > 1:
            hint = self._reported
            # What a router says is right more often than the middle is.
            size_bytes = hint if hint is not None and low < hint < high else (low + high) // 2
            if not await self.passes(size_bytes):
                high = size_bytes
            elif size_bytes == hint:
                return size_bytes
            else:
                low = size_bytes
        return low

    def is_silent_above(self, size_bytes: int) -> bool:
        """Whether no router has said why nothing larger than this passes.

        A second report may be held back by the router's own limit, so one that explains this size explains all above.
        """
        return self._reported is None or self._reported > size_bytes

    def found(self, largest: int | None, *, is_black_hole: bool = False) -> PathMtu:
        """What all of it says."""
        return PathMtu(largest, None if largest is None else is_black_hole, self._reported, self._asked)
