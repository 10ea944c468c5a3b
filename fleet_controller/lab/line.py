"""The arithmetic of an emulated access line: when each packet leaves it, and which ones it loses.

No clock and no socket here: time comes in as integer nanoseconds of any monotonic clock.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fleet_controller.lab.aqm import CoDel, Policer
from fleet_controller.lab.impairments import Jitter, Lottery
from fleet_controller.lab.packets import VNET_HEADER_BYTES, packets_of, part, wire_bytes
from fleet_controller.lab.profile import Direction, LinkProfile, tcp_payload_bps
from fleet_controller.lab.rates import RatePlan, rate_plan

__all__ = [
    "VNET_HEADER_BYTES",
    "Jitter",
    "Line",
    "LineCounters",
    "LinkProfile",
    "line_pair",
    "seed_of",
    "tcp_payload_bps",
    "wire_bytes",
]

_NS_PER_S = 1_000_000_000
# A buffer that cannot hold two packets of 1500 bytes would lose even a packet that finds the line idle but one.
_BUFFER_BYTES_MIN = 3_000
# A run of losses is a bad moment of the line, and over when nothing passed for so long: counted in packets alone, it
# would wait on an idle line for the tries of a question, which come seconds apart.
_LOSS_MEMORY_NS = _NS_PER_S // 2


@dataclass(slots=True)
class LineCounters:
    """What became of the packets of one direction, counted on the wire: a super-packet is as many as it travels as.

    `offered` is `dropped` (by the buffer, the policer or CoDel) + `lost` (by chance, behind the serialiser) + what is
    still in the line + `delivered` - `duplicated`. `delayed` ones were held back for others to overtake them.
    `refused` never came to the buffer: too long for the path, or of an IP version that vanishes here.
    """

    offered: int = 0
    dropped: int = 0
    lost: int = 0
    delivered: int = 0
    delayed: int = 0
    duplicated: int = 0
    refused: int = 0
    delivered_bytes: int = 0


class Line:
    """One direction: buffer, serialiser, loss, delay.

    `rate_bps` may be changed at any time: it counts from the next packet that leaves the buffer. That is why a
    packet's departure is reckoned when it leaves the buffer and not when it enters. `start_ns` is the moment from
    which a changing rate is counted.
    """

    def __init__(self, profile: LinkProfile, direction: Direction, seed: int, start_ns: int = 0) -> None:
        down = direction == "download"
        self.rate_bps = profile.rate_bps(direction)
        self.delay_ns = round(profile.delay_s / 2 * _NS_PER_S)
        self.jitter = Jitter(round(profile.jitter_s * _NS_PER_S) if down else 0, seed)
        self.buffer_bytes = max(round(profile.buffer_of_s(direction) * self.rate_bps / 8), _BUFFER_BYTES_MIN)
        self.counters = LineCounters()
        self._plan: RatePlan | None = rate_plan(profile, direction, seed)
        self._start_ns, self._rate_until_ns = start_ns, 0
        self._loss = _lottery(profile.loss_ratio, f"loss of {seed}", profile.loss_burst_packets)
        self._forgets_loss_ns = _LOSS_MEMORY_NS if profile.loss_burst_packets > 1 else None
        self._sent_ns: int | None = None
        self._late = _lottery(profile.reorder_ratio, f"order of {seed}")
        self._twice = _lottery(profile.duplicate_ratio, f"copies of {seed}")
        self._late_ns = round(profile.reorder_gap_s * _NS_PER_S)
        self._policer = Policer(profile.policer_burst_bytes) if profile.policer_burst_bytes is not None else None
        self._codel = CoDel() if profile.queue == "codel" else None
        # (arrival, bytes and number of packets on the wire, frame)
        self._waiting: deque[tuple[int, int, int, bytes]] = deque()
        self._waiting_bytes = 0
        # (moment at the other end, bytes and number of packets, frame), in order; and those out of it, as a heap.
        self._travelling: deque[tuple[int, int, int, bytes]] = deque()
        self._held: list[tuple[int, int, int, bytes]] = []
        self._free_ns = 0
        self._offered_ns = 0
        self._remainder = 0

    def offer(self, frame: bytes, now_ns: int) -> bool:
        """Put a frame at the end of the buffer; False when it, or the end of a super-packet, did not fit.

        One that came before the last one is taken to have come with it.
        """
        now_ns = self._offered_ns = max(now_ns, self._offered_ns)
        self._serve(now_ns)
        packets, size_bytes = packets_of(frame), wire_bytes(frame)
        self.counters.offered += packets
        if self._policer is not None:
            return self._police(frame, packets, size_bytes, now_ns)
        if self._waiting_bytes + size_bytes <= self.buffer_bytes or not self._waiting:
            self._enqueue(frame, packets, size_bytes, now_ns)
            return True
        # The packets of a super-packet come one by one: those fit in that find room.
        fitting = (self.buffer_bytes - self._waiting_bytes) * packets // size_bytes
        self.counters.dropped += packets - fitting
        if fitting:
            head = part(frame, 0, fitting)
            self._enqueue(head, fitting, wire_bytes(head), now_ns)
        return False

    def refuse(self, frame: bytes) -> None:
        """Count a frame that never comes to the buffer."""
        self.counters.refused += packets_of(frame)

    def due(self, until_ns: int) -> Iterator[bytes]:
        """The frames that arrive at the other end until then, in order of arrival."""
        self._serve(until_ns)
        while (queue := self._next_queue()) is not None and queue[0][0] <= until_ns:
            _, size_bytes, packets, frame = (
                heapq.heappop(self._held) if queue is self._held else self._travelling.popleft()
            )
            self.counters.delivered += packets
            self.counters.delivered_bytes += size_bytes
            yield frame

    def next_due_ns(self) -> int | None:
        """When something has to be done next, absent when the line is empty."""
        moments = [max(self._waiting[0][0], self._free_ns)] if self._waiting else []
        if (queue := self._next_queue()) is not None:
            moments.append(queue[0][0])
        return min(moments, default=None)

    def _next_queue(self) -> deque[tuple[int, int, int, bytes]] | list[tuple[int, int, int, bytes]] | None:
        """Where the next frame to arrive is."""
        if not self._held:
            return self._travelling or None
        if not self._travelling or self._held[0][0] < self._travelling[0][0]:
            return self._held
        return self._travelling

    def _enqueue(self, frame: bytes, packets: int, size_bytes: int, now_ns: int) -> None:
        self._waiting.append((now_ns, size_bytes, packets, frame))
        self._waiting_bytes += size_bytes

    def _police(self, frame: bytes, packets: int, size_bytes: int, now_ns: int) -> bool:
        """Let pass what finds a token, at once."""
        assert self._policer is not None  # noqa: S101 - for the type checker
        passed = self._policer.passes(now_ns, self._rate_at(now_ns), size_bytes // packets, packets)
        self.counters.dropped += packets - passed
        if passed:
            self._send(part(frame, 0, passed), passed, now_ns)
        return passed == packets

    def _rate_at(self, now_ns: int) -> int:
        if self._plan is not None and now_ns >= self._rate_until_ns:
            self.rate_bps, until_ns = self._plan.at(max(now_ns - self._start_ns, 0))
            self._rate_until_ns = self._start_ns + until_ns
        return self.rate_bps

    def _serve(self, now_ns: int) -> None:
        """Send from the buffer what the line had time to begin until now."""
        while self._waiting and (begun_ns := max(self._waiting[0][0], self._free_ns)) <= now_ns:
            arrival_ns, size_bytes, packets, frame = self._waiting.popleft()
            self._waiting_bytes -= size_bytes
            if self._codel is not None and self._codel.drops(begun_ns, begun_ns - arrival_ns, self._waiting_bytes):
                self.counters.dropped += 1
                if packets == 1:
                    continue
                packets -= 1
                frame = part(frame, 1, packets)
                size_bytes = wire_bytes(frame)
            # The remainder of a nanosecond goes to the next packet, so that the rate is exact.
            took_ns, self._remainder = divmod(size_bytes * 8 * _NS_PER_S + self._remainder, self._rate_at(begun_ns))
            self._free_ns = begun_ns + took_ns
            self._send(frame, packets, self._free_ns)

    def _send(self, frame: bytes, packets: int, sent_ns: int) -> None:
        """Let chance decide over each packet, and the rest travel."""
        arrival_ns = sent_ns + self.delay_ns + self.jitter.at(sent_ns)
        self._end_run_of_losses(sent_ns)
        lost = _hits(self._loss, packets)
        late = [index for index in _hits(self._late, packets) if index not in lost]
        twice = [index for index in _hits(self._twice, packets) if index not in lost]
        self.counters.lost += len(lost)
        self.counters.delayed += len(late)
        self.counters.duplicated += len(twice)
        for first, count in _runs(packets, {*lost, *late}):
            self._travel(part(frame, first, count), count, arrival_ns)
        for index in twice:
            self._travel(part(frame, index, 1), 1, arrival_ns)
        for index in late:
            one = part(frame, index, 1)
            heapq.heappush(self._held, (arrival_ns + self._late_ns, wire_bytes(one), 1, one))

    def _end_run_of_losses(self, sent_ns: int) -> None:
        before_ns, self._sent_ns = self._sent_ns, sent_ns
        if self._loss is None or self._forgets_loss_ns is None or before_ns is None:
            return
        if sent_ns - before_ns > self._forgets_loss_ns:
            self._loss.begin_anew()

    def _travel(self, frame: bytes, packets: int, arrival_ns: int) -> None:
        self._travelling.append((arrival_ns, wire_bytes(frame), packets, frame))


def _lottery(ratio: float, seed: str, mean_burst: float = 1.0) -> Lottery | None:
    return Lottery(ratio, seed, mean_burst) if ratio > 0 else None


def _hits(lottery: Lottery | None, packets: int) -> list[int]:
    return [] if lottery is None else lottery.hits(packets)


def _runs(packets: int, without: Iterable[int]) -> Iterator[tuple[int, int]]:
    """The stretches of neighbours among `packets` that are left when some are taken out: (first, count)."""
    first = 0
    for gap in (*sorted(without), packets):
        if gap > first:
            yield first, gap - first
        first = gap + 1


def line_pair(profile: LinkProfile, seed: int, start_ns: int = 0) -> tuple[Line, Line]:
    """The two directions of a line: upload, download. The same seed gives the same losses and the same jitter."""
    upload, download = (
        Line(profile, direction, seed_of(direction, seed), start_ns) for direction in ("upload", "download")
    )
    return upload, download


def seed_of(direction: Direction, seed: int) -> int:
    """What the chance of one direction starts from."""
    return 2 * seed + (direction == "download")
