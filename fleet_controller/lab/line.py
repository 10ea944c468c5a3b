"""The arithmetic of an emulated access line: when each packet leaves it, and which ones it loses.

No clock and no socket here: time comes in as integer nanoseconds of any monotonic clock, in non-decreasing order.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

# struct virtio_net_hdr (linux/virtio_net.h): flags, gso_type, hdr_len, gso_size, csum_start, csum_offset.
VNET_HEADER_BYTES = 10
_NS_PER_S = 1_000_000_000
_GSO_TYPE_AT = 1
_GSO_SIZE_AT = slice(4, 6)
_IPV6_HEADER_BYTES = 40
# A buffer that cannot hold two packets of 1500 bytes would lose even a packet that finds the line idle but one.
_BUFFER_BYTES_MIN = 3_000
# How often the jitter takes a new value, in units of its amplitude. Between two values it changes linearly, so that
# its slope is at most 2/5: a later packet never overtakes (that needs a slope of -1).
_JITTER_STEP_IN_AMPLITUDES = 5
# TCP payload in a 1500-byte IPv4 packet with the timestamp option that Linux always sends: 1500 - 20 - 32.
_TCP_PAYLOAD_RATIO = 1448 / 1500


@dataclass(frozen=True, slots=True)
class LinkProfile:
    """What a line is.

    Attributes:
        download_bps: IP-layer rate towards the probe.
        upload_bps: IP-layer rate from the probe.
        delay_s: round-trip delay of the empty line, half of it each way.
        jitter_s: the round-trip delay varies by up to this, either way: symmetric, so `delay_s` is its median.
        loss_ratio: share of packets lost at random in each direction.
        buffer_s: how long a packet waits at most in the buffer before the line, in each direction.
    """

    download_bps: int
    upload_bps: int
    delay_s: float
    jitter_s: float = 0.0
    loss_ratio: float = 0.0
    buffer_s: float = 0.1


def tcp_payload_bps(rate_bps: float) -> float:
    """What TCP can carry over a line of this IP-layer rate, MTU 1500, full segments."""
    return rate_bps * _TCP_PAYLOAD_RATIO


def wire_bytes(frame: bytes) -> int:
    """IP-layer bytes of a frame that starts with a virtio header.

    A super-packet travels as segments, each with its own copy of the IP and TCP headers.
    """
    length_bytes = len(frame) - VNET_HEADER_BYTES
    if frame[_GSO_TYPE_AT] == 0:
        return length_bytes
    segment_bytes = int.from_bytes(frame[_GSO_SIZE_AT], "little")
    header_bytes = _header_bytes(frame)
    payload_bytes = length_bytes - header_bytes
    segments = -(-payload_bytes // segment_bytes)
    return payload_bytes + segments * header_bytes


def _header_bytes(frame: bytes) -> int:
    """IP and TCP headers of a super-packet. The virtio header's own `hdr_len` is a hint that may count payload."""
    first = frame[VNET_HEADER_BYTES]
    ip_bytes = (first & 0x0F) * 4 if first >> 4 == 4 else _IPV6_HEADER_BYTES  # noqa: PLR2004 - the IP version
    tcp_words = frame[VNET_HEADER_BYTES + ip_bytes + 12] >> 4  # RFC 9293 section 3.1: the data offset
    return ip_bytes + tcp_words * 4


class Jitter:
    """A deviation of the delay that moves linearly between random values, uniform in ± the amplitude."""

    def __init__(self, amplitude_ns: int, seed: int) -> None:
        self._amplitude_ns = amplitude_ns
        self._step_ns = amplitude_ns * _JITTER_STEP_IN_AMPLITUDES
        self._random = random.Random(seed)  # noqa: S311 - reproducible on purpose
        self._index = 0
        self._from_ns, self._to_ns = self._draw(), self._draw()

    def at(self, time_ns: int) -> int:
        """The deviation at `time_ns`, in nanoseconds. Times must not go back."""
        if self._amplitude_ns == 0:
            return 0
        index, into_ns = divmod(time_ns, self._step_ns)
        if index != self._index:
            self._from_ns = self._to_ns if index == self._index + 1 else self._draw()
            self._to_ns = self._draw()
            self._index = index
        return self._from_ns + (self._to_ns - self._from_ns) * into_ns // self._step_ns

    def _draw(self) -> int:
        return round(self._random.uniform(-self._amplitude_ns, self._amplitude_ns))


@dataclass(slots=True)
class LineCounters:
    """What became of the packets offered to one direction. A super-packet counts as one."""

    offered: int = 0
    dropped: int = 0
    lost: int = 0
    delivered: int = 0


@dataclass(slots=True)
class Line:
    """One direction: buffer, serialiser, loss, delay.

    `rate_bps` may be changed at any time: it counts from the next packet that leaves the buffer. That is why a
    packet's departure is reckoned when it leaves the buffer and not when it enters.
    """

    rate_bps: int
    delay_ns: int
    jitter: Jitter
    loss_ratio: float
    buffer_bytes: int
    loss_random: random.Random
    counters: LineCounters = field(default_factory=LineCounters)
    _waiting: deque[tuple[int, int, bytes]] = field(default_factory=deque)
    _waiting_bytes: int = 0
    _travelling: deque[tuple[int, bytes]] = field(default_factory=deque)
    _free_ns: int = 0
    _remainder: int = 0

    def offer(self, frame: bytes, now_ns: int) -> bool:
        """Put a frame at the end of the buffer; False when it did not fit and is dropped."""
        self._serve(now_ns)
        self.counters.offered += 1
        size_bytes = wire_bytes(frame)
        if self._waiting_bytes + size_bytes > self.buffer_bytes and self._waiting:
            self.counters.dropped += 1
            return False
        self._waiting.append((now_ns, size_bytes, frame))
        self._waiting_bytes += size_bytes
        return True

    def due(self, until_ns: int) -> Iterator[bytes]:
        """The frames that arrive at the other end until then, in order."""
        self._serve(until_ns)
        while self._travelling and self._travelling[0][0] <= until_ns:
            self.counters.delivered += 1
            yield self._travelling.popleft()[1]

    def next_due_ns(self) -> int | None:
        """When something has to be done next, absent when the line is empty."""
        moments = [max(self._waiting[0][0], self._free_ns)] if self._waiting else []
        if self._travelling:
            moments.append(self._travelling[0][0])
        return min(moments, default=None)

    def _serve(self, now_ns: int) -> None:
        """Send from the buffer what the line had time to begin until now."""
        while self._waiting and max(self._waiting[0][0], self._free_ns) <= now_ns:
            arrival_ns, size_bytes, frame = self._waiting.popleft()
            self._waiting_bytes -= size_bytes
            # The remainder of a nanosecond goes to the next packet, so that the rate is exact.
            begun_ns = max(arrival_ns, self._free_ns)
            took_ns, self._remainder = divmod(size_bytes * 8 * _NS_PER_S + self._remainder, self.rate_bps)
            self._free_ns = begun_ns + took_ns
            if self.loss_ratio and self.loss_random.random() < self.loss_ratio:
                self.counters.lost += 1
                continue
            self._travelling.append((self._free_ns + self.delay_ns + self.jitter.at(self._free_ns), frame))


def line_pair(profile: LinkProfile, seed: int) -> tuple[Line, Line]:
    """The two directions of a line: upload, download. The same seed gives the same losses and the same jitter.

    Raises:
        ValueError: a jitter larger than the delay.
    """
    if profile.jitter_s > profile.delay_s:
        raise ValueError(f"a jitter of {profile.jitter_s} s does not fit into a delay of {profile.delay_s} s")
    return _line(profile, profile.upload_bps, 2 * seed), _line(profile, profile.download_bps, 2 * seed + 1)


def _line(profile: LinkProfile, rate_bps: int, seed: int) -> Line:
    return Line(
        rate_bps=rate_bps,
        delay_ns=round(profile.delay_s / 2 * _NS_PER_S),
        jitter=Jitter(round(profile.jitter_s / 2 * _NS_PER_S), seed),
        loss_ratio=profile.loss_ratio,
        buffer_bytes=max(round(profile.buffer_s * rate_bps / 8), _BUFFER_BYTES_MIN),
        loss_random=random.Random(f"loss of {seed}"),  # noqa: S311 - reproducible on purpose
    )
