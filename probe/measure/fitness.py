"""Was the host fit to measure? Read right before and right after every measurement, so it must cost little.

A reading takes a few small files of /proc and /sys: 0.1 ms on a PC, below 0.3 ms on a Pi. What a host does not have is
absent from the result.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from probe.links import Link, LinkCounters
from probe.messages import Fitness

_PROC_STAT = "/proc/stat"
# The lines of the cores stand first: this holds those of 64 cores, without the long interrupt counters after them.
_STAT_BYTES = 8192
# Raspberry Pi firmware, as the kernel shows it (drivers/firmware/raspberrypi.c).
_THROTTLED = "/sys/devices/platform/soc/soc:firmware/get_throttled"
_HAS_FIRMWARE = os.path.exists(_THROTTLED)  # noqa: PTH110 - a string, as it is read
# Bits 0-3: under-voltage, frequency capped, throttled, soft temperature limit, all of this moment.
_THROTTLED_NOW = 0b1111
_LOOPBACK = "lo"  # no line ends there: everything of the host passes, at no negotiated speed
# The counters see headers, acknowledgements and neighbour discovery, a task counts payload. A bulk transfer costs
# 66 bytes per 1448 one way and half as many acknowledgements the other: below 8 %. A train of small packets costs up to
# 62 bytes per packet of 44, so the first 128 KiB are granted half again as much as they are. What the allowance hides
# (at most 200 kB, beside a long train) is far from disturbing a measurement.
_BULK_HEADER_RATIO = 0.08
_SMALL_PACKETS_BYTES = 128 * 1024
_SMALL_PACKETS_HEADER_RATIO = 1.5
_CHATTER_BYTES = 2048


@dataclass(frozen=True, slots=True)
class Reading:
    """The host at one moment: (busy, all) ticks of each core, the firmware's word, the link's counters."""

    cores: tuple[tuple[int, int], ...]
    throttled: bool | None
    counters: LinkCounters | None


def read(link: Link | None) -> Reading:
    """Read the host, and the link's counters where there is one."""
    counted = link is not None and link.interface != _LOOPBACK
    return Reading(
        cores=_read_cores(),
        throttled=_read_throttled(),
        counters=link.counters() if link is not None and counted else None,
    )


def judge(before: Reading, after: Reading, link: Link | None, *, payload_bytes: int, own_load: bool) -> Fitness:
    """What two readings say of the time between them, in which the measurement itself moved `payload_bytes`."""
    throttled = [reading.throttled for reading in (before, after) if reading.throttled is not None]
    return Fitness(
        busiest_core_ratio=_busiest_core_ratio(before, after),
        throttled=any(throttled) if throttled else None,
        nic_speed_bps=link.nic_speed_bps() if link is not None and link.interface != _LOOPBACK else None,
        cross_traffic_bytes=_cross_traffic_bytes(before.counters, after.counters, payload_bytes),
        own_load=own_load,
    )


def _read_cores() -> tuple[tuple[int, int], ...]:
    text = _read_file(_PROC_STAT)
    return tuple(_ticks(line) for line in text.split(b"\n") if line[:3] == b"cpu" and line[3:4].isdigit())


def _ticks(line: bytes) -> tuple[int, int]:
    """(busy, all) of one line: user nice system idle iowait irq softirq steal (proc(5)); guests are within user."""
    ticks = [int(word) for word in line.split()[1:9]]
    total = sum(ticks)
    return total - ticks[3] - ticks[4], total


def _read_throttled() -> bool | None:
    if not _HAS_FIRMWARE:
        return None
    text = _read_file(_THROTTLED)
    try:
        return bool(int(text, 16) & _THROTTLED_NOW)
    except ValueError:
        return None


def _read_file(path: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, _STAT_BYTES)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def _busiest_core_ratio(before: Reading, after: Reading) -> float | None:
    """Absent for a measurement shorter than the kernel's tick (10 ms), and when a core came or went."""
    if len(before.cores) != len(after.cores):
        return None
    passed = [(end[0] - start[0], end[1] - start[1]) for start, end in zip(before.cores, after.cores, strict=True)]
    ratios = [min(max(busy / total, 0.0), 1.0) for busy, total in passed if total > 0]
    return max(ratios, default=None)


def _cross_traffic_bytes(before: LinkCounters | None, after: LinkCounters | None, payload_bytes: int) -> int | None:
    """Never below zero: absent when the interface was, or came back with its counters at zero."""
    if before is None or after is None:
        return None
    received = after.received_bytes - before.received_bytes
    sent = after.sent_bytes - before.sent_bytes
    if received < 0 or sent < 0:
        return None
    headers = min(payload_bytes, _SMALL_PACKETS_BYTES) * _SMALL_PACKETS_HEADER_RATIO
    own = payload_bytes * (1 + _BULK_HEADER_RATIO) + headers + _CHATTER_BYTES
    return max(received + sent - int(own), 0)
