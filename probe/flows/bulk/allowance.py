"""The payload that a transfer may cause, shared by its streams, so that the sum keeps to a limit at any speed.

Who causes bytes takes them first: a request for a part of the peer's object, a part handed to a socket, a receive
window that is open. What was taken and can no longer come is given back.
"""

from __future__ import annotations

from typing import Final

# A limited download asks for so many parts on each stream, so that the streams end at about the same time.
_PARTS_PER_STREAM: Final = 12
# The one that comes, one that follows at once, and one whose request is on its way.
_PARTS_AHEAD_MIN: Final = 3
# More than a response's head, which is read in one go with what follows it.
PART_BYTES_MIN: Final = 32 * 1024
_PART_BYTES_MAX: Final = 4 << 20
# Of a limited transfer, what may stand open in the receive windows of a peer that serves no parts.
_WINDOWS_SHARE: Final = 4
_WINDOW_BYTES_MIN: Final = 16 * 1024
_WINDOW_BYTES_MAX: Final = 4 << 20
_STREAMS_GUESSED: Final = 8


class Allowance:
    """What is left; without a limit there is always more.

    Attributes:
        is_hard: not even what is under way when the transfer stops may exceed the limit.
        by_window: the peer does not serve parts, so open receive windows count instead of requests.
        parts_ahead: how many parts a stream should have asked for at any time.
    """

    def __init__(self, limit_bytes: int | None, *, is_hard: bool = True) -> None:
        self.is_hard = is_hard
        self.by_window = False
        self._limit_bytes = self._rest_bytes = limit_bytes
        self.parts_ahead = _PARTS_AHEAD_MIN
        self._streams = _STREAMS_GUESSED

    @property
    def is_limited(self) -> bool:
        """Whether there is an end at all."""
        return self._limit_bytes is not None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left to take."""
        return self._rest_bytes == 0

    def share_among(self, streams: int) -> None:
        """Say how many streams there will be: parts are as small as suits that many."""
        self._streams = streams

    def ask_ahead(self, under_way_bytes: float) -> None:
        """Have so much asked for, by all streams together, beyond the parts that come now and next."""
        self.parts_ahead = _PARTS_AHEAD_MIN + int(under_way_bytes / (self._streams * max(1, self.part_bytes)))

    @property
    def part_bytes(self) -> int:
        """How much one stream should take in one go."""
        if self._limit_bytes is None:
            return _PART_BYTES_MAX
        return max(1, min(self._limit_bytes // (_PARTS_PER_STREAM * self._streams), _PART_BYTES_MAX))

    @property
    def window_bytes(self) -> int:
        """How wide one stream's receive window may be, where that is what counts."""
        share_bytes = (self._limit_bytes or 0) // (_WINDOWS_SHARE * self._streams)
        return min(max(share_bytes, _WINDOW_BYTES_MIN), _WINDOW_BYTES_MAX)

    def at_most(self, counted_bytes: int) -> int:
        """The count, which can be no more than the limit."""
        return counted_bytes if self._limit_bytes is None else min(counted_bytes, self._limit_bytes)

    def take(self, wanted_bytes: int) -> int:
        """Take at most so many; 0 when nothing is left."""
        if self._rest_bytes is None:
            return wanted_bytes
        taken_bytes = min(wanted_bytes, self._rest_bytes)
        self._rest_bytes -= taken_bytes
        return taken_bytes

    def take_part(self) -> int:
        """Take a part to ask for, never one that is too short to be worth a request; 0 when none is left."""
        part_bytes = max(self.part_bytes, PART_BYTES_MIN)
        if self._rest_bytes is not None and self._rest_bytes < part_bytes + PART_BYTES_MIN:
            part_bytes = self._rest_bytes
        return self.take(part_bytes)

    def give_back(self, unused_bytes: int) -> None:
        """What was taken and will not come."""
        if self._rest_bytes is not None:
            self._rest_bytes += unused_bytes
