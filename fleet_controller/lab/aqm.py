"""How a line's buffer drops before it is full, or instead of being one: CoDel, and a token-bucket policer."""

from __future__ import annotations

import math

_NS_PER_S = 1_000_000_000
_BIT_NS_PER_BYTE = 8 * _NS_PER_S
# RFC 8289 sections 4.2 and 4.3.
_TARGET_NS = 5_000_000
_INTERVAL_NS = 100_000_000
_MTU_BYTES = 1500


class CoDel:
    """Controlled delay (RFC 8289 section 5): asked for each packet that is about to leave the buffer."""

    def __init__(self) -> None:
        self._first_above_ns = 0
        self._drop_next_ns = 0
        self._count = 0
        self._count_last = 0
        self._dropping = False

    def drops(self, now_ns: int, waited_ns: int, backlog_bytes: int) -> bool:
        """Whether this packet is dropped. Moments must not go back."""
        must_go = self._is_standing_queue(now_ns, waited_ns, backlog_bytes)
        if self._dropping:
            if not must_go:
                self._dropping = False
                return False
            if now_ns < self._drop_next_ns:
                return False
            self._count += 1
            self._drop_next_ns = self._control_law(self._drop_next_ns)
            return True
        if not must_go:
            return False
        self._begin_dropping(now_ns)
        return True

    def _is_standing_queue(self, now_ns: int, waited_ns: int, backlog_bytes: int) -> bool:
        """Whether packets have waited for longer than the target for a whole interval."""
        if waited_ns < _TARGET_NS or backlog_bytes <= _MTU_BYTES:
            self._first_above_ns = 0
            return False
        if self._first_above_ns == 0:
            self._first_above_ns = now_ns + _INTERVAL_NS
            return False
        return now_ns >= self._first_above_ns

    def _begin_dropping(self, now_ns: int) -> None:
        self._dropping = True
        # Soon after the last time, go on near the rate that controlled the queue then.
        recent = now_ns - self._drop_next_ns < 16 * _INTERVAL_NS
        since = self._count - self._count_last
        self._count = since if since > 1 and recent else 1
        self._drop_next_ns = self._control_law(now_ns)
        self._count_last = self._count

    def _control_law(self, moment_ns: int) -> int:
        return moment_ns + round(_INTERVAL_NS / math.sqrt(self._count))


class Policer:
    """A token bucket that delays nothing: what finds no token is dropped."""

    def __init__(self, burst_bytes: int) -> None:
        # In bits times nanoseconds per second, so that nothing is rounded away at any rate.
        self._burst = burst_bytes * _BIT_NS_PER_BYTE
        self._tokens = self._burst
        self._at_ns: int | None = None

    def passes(self, now_ns: int, rate_bps: int, packet_bytes: int, packets: int) -> int:
        """How many of so many packets of this length find a token. Moments must not go back."""
        if self._at_ns is not None:
            self._tokens = min(self._tokens + (now_ns - self._at_ns) * rate_bps, self._burst)
        self._at_ns = now_ns
        passed = min(packets, self._tokens // max(packet_bytes * _BIT_NS_PER_BYTE, 1))
        self._tokens -= passed * packet_bytes * _BIT_NS_PER_BYTE
        return passed
