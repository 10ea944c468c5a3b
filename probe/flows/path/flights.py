"""Probes that are on their way: when each left, by our clocks and by the kernel's, and which are still awaited."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from probe.flows.moments import Moment


@dataclass(slots=True)
class Flight:
    """One probe. `departed_ns` is the kernel's wall-clock stamp of its leaving; absent where it gives none."""

    ttl: int
    sent: Moment
    departed_ns: int | None = None


class Flights:
    """The probes of one trace that are neither answered nor given up."""

    def __init__(self) -> None:
        self._flights: dict[int, Flight] = {}
        # The numbers of our probes in the order in which the kernel counts what leaves.
        self._counted: list[int] = []

    def add(self, number: int, flight: Flight) -> None:
        """A probe was sent."""
        self._flights[number] = flight
        self._counted.append(number)

    def count_anew(self) -> None:
        """The kernel counts from 0 again."""
        self._counted.clear()

    def note_departure(self, count: int, stamp_ns: int) -> None:
        """The kernel says when its packet number `count` left."""
        flight = self._flights.get(self._counted[count]) if count < len(self._counted) else None
        # One that seems to have left before it was sent is another's, or a clock was stepped.
        if flight is not None and stamp_ns >= flight.sent.wall_ns:
            flight.departed_ns = stamp_ns

    def get(self, number: int) -> Flight | None:
        """One that is on its way; absent when it is not."""
        return self._flights.get(number)

    def land(self, number: int) -> None:
        """It is answered, or nothing more can come of it."""
        self._flights.pop(number, None)

    def give_up(self) -> None:
        """Nothing is awaited any more."""
        self._flights.clear()

    def only_one(self) -> int | None:
        """The number of the only one on its way; absent when there are others, or none."""
        return next(iter(self._flights)) if len(self._flights) == 1 else None

    def last_sent_ns(self, ttl_max: int) -> int | None:
        """When the last of those up to a TTL was sent, on the monotonic clock; absent when none is on its way."""
        return max(self._sent_ns(ttl_max), default=None)

    def _sent_ns(self, ttl_max: int) -> Iterator[int]:
        return (flight.sent.monotonic_ns for flight in self._flights.values() if flight.ttl <= ttl_max)
