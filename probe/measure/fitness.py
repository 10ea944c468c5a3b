"""Was the host fit to measure? Read right before and right after every measurement, and judged from the difference.

The figures say what the host did; `host_limited` says whether the instrument was the limit (`host_limits`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from probe.clock import NS_PER_S
from probe.links import Link
from probe.measure.cross_traffic import (
    HEADER_BYTES_MAX,
    LinkHistory,
    bytes_of,
    header_bytes_of,
    moved_between,
    own_bytes,
)
from probe.measure.host_limits import Evidence, limit_of
from probe.measure.host_readings import CoreTicks, Reading, nic_speed_bps, read
from probe.messages import Fitness
from probe.tasks.base import Load, Usage

_BITS: Final = 8
# Ticks are 10 ms: a share of fewer than ten of them is an accident of the moment.
_TICKS_MIN: Final = 10
# Of a shorter transfer the handshakes, and reading the authorities' certificates, may be most of the CPU's work.
_TRANSFER_S_MIN: Final = 0.5
# A tick is a ten-thousandth of 100 s, and every digit travels over a line that may be paid by volume.
_RATIO_DIGITS: Final = 4


@dataclass(frozen=True, slots=True)
class Measured:
    """What a measurement itself did: its load, its link, what it told of itself, whether it had the link to itself.

    `header_bytes` are those of one of its packets on that link, at most.
    """

    load: Load
    link: Link | None
    usage: Usage
    own_load: bool = False
    header_bytes: int = HEADER_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Begun:
    """The host right before a measurement, and the rate of others over its link shortly before."""

    reading: Reading
    rate_before_bps: float | None


class FitnessJudge:
    """Reads the host around measurements, and remembers of each interface what it had moved."""

    def __init__(self) -> None:
        self._histories: dict[str, LinkHistory] = {}

    def begin(self, link: Link | None) -> Begun:
        """Right before a measurement."""
        reading = _read(link)
        if link is None or reading.traffic is None:
            return Begun(reading, None)
        history = self._histories.setdefault(link.interface, LinkHistory())
        rate_bps = history.rate_before_bps(reading.at_ns, reading.traffic)
        history.remember(reading.at_ns, reading.traffic)
        return Begun(reading, rate_bps)

    def end(
        self, begun: Begun, load: Load, link: Link | None, usage: Usage, *, ip_version: int, own_load: bool
    ) -> Fitness:
        """Right after it. `ip_version` is that of its packets; any other number where they were of both."""
        after = _read(link)
        header_bytes = HEADER_BYTES_MAX if link is None else header_bytes_of(link.interface, ip_version)
        measured = Measured(load, link, usage, own_load, header_bytes)
        self._remember(begun.reading, after, measured)
        return judge(begun, after, measured)

    def _remember(self, before: Reading, after: Reading, measured: Measured) -> None:
        history = self._histories.get(measured.link.interface) if measured.link is not None else None
        if history is None:
            return
        moved = moved_between(before.traffic, after.traffic)
        if moved is not None:
            history.add_own(own_bytes(moved, _payload_bytes(measured.usage), measured.header_bytes))
        if measured.load is Load.HEAVY:
            history.forget(after.at_ns)
        elif after.traffic is not None:
            history.remember(after.at_ns, after.traffic)


def judge(begun: Begun, after: Reading, measured: Measured) -> Fitness:
    """What two readings say of the time between them."""
    before, passed_ns = begun.reading, after.at_ns - begun.reading.at_ns
    cores = _cores_passed(before, after)
    evidence = _evidence(before, after, measured, cores)
    limit = limit_of(measured.load, evidence)
    # Beside a heavy measurement of our own, what moved before is nobody else's.
    rate_before_bps = None if measured.own_load else begun.rate_before_bps
    return Fitness(
        busiest_core_ratio=_largest((core.busy, core.total) for core in cores if core.total > 0),
        throttled=evidence.firmware_throttled,
        nic_speed_bps=evidence.nic_speed_bps,
        cross_traffic_bytes=_cross_traffic_bytes(before, after, measured),
        own_load=measured.own_load,
        cross_traffic_before_bps=None if rate_before_bps is None else round(rate_before_bps),
        steal_ratio=evidence.steal_ratio,
        softirq_ratio=evidence.softirq_ratio,
        cpu_pressure_ratio=_share(before.cpu_pressure_ns, after.cpu_pressure_ns, passed_ns),
        cpu_wait_ratio=evidence.wait_ratio,
        own_cpu_ratio=evidence.own_cpu_ratio,
        cgroup_throttled_ratio=evidence.cgroup_throttled_ratio,
        # Without a figure of the processor nobody can say that the host was fit.
        host_limited=None if limit is None and evidence.own_cpu_ratio is None else limit is not None,
        host_limited_by=limit,
    )


def _read(link: Link | None) -> Reading:
    return read(link.interface if link is not None else None)


def _payload_bytes(usage: Usage) -> int:
    return usage.sent_bytes + usage.received_bytes


def _evidence(before: Reading, after: Reading, measured: Measured, cores: tuple[CoreTicks, ...]) -> Evidence:
    """A heavy task's work is done by a thread of its own, a light one's by the one that reads."""
    passed_ns, usage, link = after.at_ns - before.at_ns, measured.usage, measured.link
    transfer_ns = _transfer_ns(usage)
    timed = [core for core in cores if core.total >= _TICKS_MIN]
    throttled = [one.firmware_throttled for one in (before, after) if one.firmware_throttled is not None]
    if measured.load is Load.HEAVY:
        waited_ns = before.workers_wait_ns, after.workers_wait_ns
    else:
        waited_ns = before.wait_ns, after.wait_ns
    return Evidence(
        own_cpu_ratio=_share(before.cpu_ns, after.cpu_ns, passed_ns),
        wait_ratio=_share(*waited_ns, passed_ns),
        transfer_cpu_ratio=usage.cpu_ratio if transfer_ns else None,
        transfer_wait_ratio=_share(before.workers_wait_ns, after.workers_wait_ns, transfer_ns),
        softirq_ratio=_largest((core.softirq, core.total) for core in timed),
        steal_ratio=_largest((core.steal, core.total) for core in timed),
        cgroup_throttled_ratio=_throttled_ratio(before, after),
        memory_stall_ratio=_share(before.memory_stall_ns, after.memory_stall_ns, passed_ns),
        firmware_throttled=any(throttled) if throttled else None,
        rate_bps=_rate_bps(before, after, usage),
        nic_speed_bps=nic_speed_bps(link.interface if link is not None else None),
    )


def _transfer_ns(usage: Usage) -> int:
    """How long the task's bulk transfer took; 0 where it made none, or one too short to be judged by itself."""
    transfer_s = usage.transfer_s or 0.0
    return round(transfer_s * NS_PER_S) if transfer_s >= _TRANSFER_S_MIN else 0


def _cores_passed(before: Reading, after: Reading) -> tuple[CoreTicks, ...]:
    """Nothing when a core came or went."""
    if len(before.cores) != len(after.cores):
        return ()
    return tuple(
        CoreTicks(end.busy - start.busy, end.total - start.total, end.softirq - start.softirq, end.steal - start.steal)
        for start, end in zip(before.cores, after.cores, strict=True)
    )


def _largest(shares: Iterable[tuple[int, int]]) -> float | None:
    """The largest share. The kernel's counters of idle time can go back a little: never below 0 or above 1."""
    return max((round(min(max(part / whole, 0.0), 1.0), _RATIO_DIGITS) for part, whole in shares), default=None)


def _share(before_ns: int | None, after_ns: int | None, passed_ns: int) -> float | None:
    """Which share of the time a total grew by. Several threads of one process can use more than one core."""
    if before_ns is None or after_ns is None or after_ns < before_ns or passed_ns <= 0:
        return None
    return round((after_ns - before_ns) / passed_ns, _RATIO_DIGITS)


def _throttled_ratio(before: Reading, after: Reading) -> float | None:
    """Absent without a quota: then the kernel counts no periods."""
    if before.throttling is None or after.throttling is None:
        return None
    periods = after.throttling.periods - before.throttling.periods
    return _largest([(after.throttling.throttled - before.throttling.throttled, periods)]) if periods > 0 else None


def _rate_bps(before: Reading, after: Reading, usage: Usage) -> float | None:
    """What the task says that it reached, or the mean of the fuller direction."""
    if usage.rate_bps is not None:
        return usage.rate_bps
    moved, passed_ns = moved_between(before.traffic, after.traffic), after.at_ns - before.at_ns
    if moved is None or passed_ns <= 0:
        return None
    return max(moved.received_bytes, moved.sent_bytes) * _BITS * NS_PER_S / passed_ns


def _cross_traffic_bytes(before: Reading, after: Reading, measured: Measured) -> int | None:
    moved = moved_between(before.traffic, after.traffic)
    if moved is None:
        return None
    return bytes_of(moved) - own_bytes(moved, _payload_bytes(measured.usage), measured.header_bytes)
