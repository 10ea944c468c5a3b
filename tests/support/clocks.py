"""The host's clocks, with a word of our own about whether they can be trusted."""

from __future__ import annotations

from probe.clock import SystemClock
from probe.messages import ClockReading, ClockState


class Synchronised(SystemClock):
    """A clock that the kernel vouches for, as with NTP."""

    def reading(self) -> ClockReading:
        """Good to 10 ms."""
        return ClockReading(state=ClockState.SYNCHRONISED, max_error_s=0.01)


class Unsynchronised(SystemClock):
    """A clock that nobody vouches for, as after a boot without a network."""

    def reading(self) -> ClockReading:
        """Nothing is known."""
        return ClockReading(state=ClockState.UNSYNCHRONISED)
