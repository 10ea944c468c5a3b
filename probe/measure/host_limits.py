"""When the instrument was the limit: what a host may do to a measurement before its figure says nothing of the line.

A heavy task measures how much the line carries, so whatever kept its thread, the kernel's packet work or the interface
at their end made the figure too low. A light task measures when packets come, and the kernel stamps those: another
process that uses a core does it no harm (8 busy processes on 2 cores moved the median of 50 packets by less than
0.01 ms), but a thread that gets no core cannot send what it should.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from probe.messages import HostLimit
from probe.tasks.base import Load

# Beyond this share of one core a transfer has no room left for a burst.
OWN_CPU_RATIO_MAX: Final = 0.7
# The kernel's buffers bridge short waits: up to 0.46 cost less than 4 %, from 0.7 on three quarters of the rate.
HEAVY_WAIT_RATIO_MAX: Final = 0.6
# One core does the packet work of an interface without several queues.
SOFTIRQ_RATIO_MAX: Final = 0.8
# TCP payload of a full 100BASE-TX line is 94 % of its speed.
NIC_RATIO_MAX: Final = 0.9
# A tenth of the time without the processor, or without memory: delays and rates are the host's by then.
STEAL_RATIO_MAX: Final = 0.1
THROTTLED_RATIO_MAX: Final = 0.05
MEMORY_STALL_RATIO_MAX: Final = 0.1
# A light task that waited for a fifth of its time: 3 ms a packet at 20 ms, 20 ms at 100 ms.
LIGHT_WAIT_RATIO_MAX: Final = 0.2


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of the host during one measurement; shares of the time, absent where nothing is known.

    `own_cpu_ratio` is of this process, `wait_ratio` of the thread that measured; `transfer_cpu_ratio` and
    `transfer_wait_ratio` are of a bulk transfer's thread, as shares of the transfer's own time; `rate_bps` is the best
    rate that it held.
    """

    own_cpu_ratio: float | None = None
    wait_ratio: float | None = None
    transfer_cpu_ratio: float | None = None
    transfer_wait_ratio: float | None = None
    softirq_ratio: float | None = None
    steal_ratio: float | None = None
    cgroup_throttled_ratio: float | None = None
    memory_stall_ratio: float | None = None
    firmware_throttled: bool | None = None
    rate_bps: float | None = None
    nic_speed_bps: int | None = None


def limit_of(load: Load, evidence: Evidence) -> HostLimit | None:
    """What limited a measurement of this kind, the cause before its consequences; absent when nothing did."""
    starved = _is_light_starved(evidence) if load is Load.LIGHT else _is_heavy_starved(evidence)
    said = (
        (HostLimit.CGROUP, _beyond(evidence.cgroup_throttled_ratio, THROTTLED_RATIO_MAX)),
        (HostLimit.STEAL, _beyond(evidence.steal_ratio, STEAL_RATIO_MAX)),
        (HostLimit.MEMORY, _beyond(evidence.memory_stall_ratio, MEMORY_STALL_RATIO_MAX)),
        (HostLimit.SOFTIRQ, _beyond(evidence.softirq_ratio, SOFTIRQ_RATIO_MAX)),
        (HostLimit.THERMAL if evidence.firmware_throttled else HostLimit.CPU, starved),
        (HostLimit.NIC, load is Load.HEAVY and _is_nic_full(evidence)),
    )
    return next((limit for limit, holds in said if holds), None)


def _is_light_starved(evidence: Evidence) -> bool:
    return _beyond(evidence.wait_ratio, LIGHT_WAIT_RATIO_MAX)


def _is_heavy_starved(evidence: Evidence) -> bool:
    """Over all of the measurement, or over its transfer alone, which idle phases before and after it may surround."""
    return (
        _beyond(evidence.own_cpu_ratio, OWN_CPU_RATIO_MAX)
        or _beyond(evidence.transfer_cpu_ratio, OWN_CPU_RATIO_MAX)
        or _beyond(evidence.wait_ratio, HEAVY_WAIT_RATIO_MAX)
        or _beyond(evidence.transfer_wait_ratio, HEAVY_WAIT_RATIO_MAX)
    )


def _is_nic_full(evidence: Evidence) -> bool:
    if evidence.rate_bps is None or evidence.nic_speed_bps is None:
        return False
    return evidence.rate_bps >= NIC_RATIO_MAX * evidence.nic_speed_bps


def _beyond(ratio: float | None, most: float) -> bool:
    return ratio is not None and ratio > most
