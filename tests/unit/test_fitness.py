"""Whether the host was fit: what two readings say, and who was the limit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from probe.config import LinkConfig
from probe.flows.bulk import core_time
from probe.flows.bulk.core_time import counted, ended_wait_ns, thread_wait_ns
from probe.links import Link
from probe.measure import host_readings
from probe.measure.fitness import Begun, FitnessJudge, Measured, judge
from probe.measure.host_limits import Evidence, limit_of
from probe.measure.host_readings import CoreTicks, Reading, Throttling, read
from probe.messages import Fitness, HostLimit
from probe.tasks.base import Load, Usage

S = 1_000_000_000
LINE = Link(LinkConfig(name="fixed0", interface="lo"))


def ticks(*cores: tuple[int, int]) -> tuple[CoreTicks, ...]:
    """Cores of which only the busy and all ticks matter."""
    return tuple(CoreTicks(busy, total) for busy, total in cores)


def judged(before: Reading, after: Reading, load: Load = Load.LIGHT, **measured: Any) -> Fitness:
    """What is said of a measurement between two readings."""
    usage = measured.pop("usage", Usage())
    return judge(Begun(before, None), after, Measured(load, None, usage, **measured))


def test_the_busiest_core_counts() -> None:
    """One busy core of four makes an unfit host, whatever the others do."""
    before = Reading(0, ticks((100, 1000), (0, 1000), (0, 1000), (0, 1000)))
    after = Reading(S, ticks((190, 1100), (10, 1100), (0, 1100), (0, 1100)))
    assert judged(before, after).busiest_core_ratio == 0.9


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (ticks((5, 10)), ticks((5, 10))),
        (ticks((5, 10)), ticks((5, 10), (5, 10))),
        ((), ()),
    ],
)
def test_no_figure_is_absent(before: tuple[CoreTicks, ...], after: tuple[CoreTicks, ...]) -> None:
    """No time at all, a core that came, a host without figures: absent, not zero, and nobody says that it was fit."""
    assert judged(Reading(S, before), Reading(S, after)) == Fitness()


def test_a_share_of_less_than_ten_ticks_is_none() -> None:
    """One tick of softirq in a measurement of one tick says nothing; the same share of 100 ticks does."""
    before = Reading(0, (CoreTicks(0, 0),))
    assert judged(before, Reading(S, (CoreTicks(1, 1, softirq=1),))).softirq_ratio is None
    after = judged(before, Reading(S, (CoreTicks(100, 100, softirq=95, steal=5),)))
    assert (after.softirq_ratio, after.steal_ratio) == (0.95, 0.05)
    assert after.host_limited_by is HostLimit.SOFTIRQ


def test_throttled_before_or_after_counts() -> None:
    """A host that was throttled at either end was not fit."""
    hot, cool = Reading(0, firmware_throttled=True), Reading(S, firmware_throttled=False)
    both = judged(hot, cool, own_load=True)
    assert both.throttled
    assert both.own_load
    assert judged(Reading(0, firmware_throttled=False), cool).throttled is False


def test_shares_are_of_the_time_that_passed() -> None:
    """Two seconds: 0.5 s of CPU, 0.2 s ready without a core, 1 s of pressure, 3 of 4 periods throttled."""
    before = Reading(0, cpu_ns=S, wait_ns=S, cpu_pressure_ns=S, throttling=Throttling(10, 10))
    after = Reading(2 * S, (), 3 * S // 2, 6 * S // 5, cpu_pressure_ns=2 * S, throttling=Throttling(14, 13))
    fitness = judged(before, after)
    assert (fitness.own_cpu_ratio, fitness.cpu_wait_ratio, fitness.cpu_pressure_ratio) == (0.25, 0.1, 0.5)
    assert (fitness.cgroup_throttled_ratio, fitness.host_limited_by) == (0.75, HostLimit.CGROUP)


def test_no_quota_is_no_ratio() -> None:
    """The kernel counts no periods without a quota: absent, and no limit."""
    fitness = judged(Reading(0, throttling=Throttling(0, 0)), Reading(S, throttling=Throttling(0, 0)))
    assert fitness.cgroup_throttled_ratio is None
    assert fitness.host_limited is False


def test_a_heavy_task_waits_in_a_thread_of_its_own() -> None:
    """What the idle event loop waited is a light task's; the ended thread's is a heavy one's."""
    before, after = (
        Reading(0, wait_ns=0, workers_wait_ns=S),
        Reading(S, cpu_ns=S // 10, wait_ns=S // 10, workers_wait_ns=2 * S),
    )
    light, heavy = judged(before, after), judged(before, after, Load.HEAVY)
    assert (light.cpu_wait_ratio, light.host_limited) == (0.1, False)
    assert (heavy.cpu_wait_ratio, heavy.host_limited_by) == (1.0, HostLimit.CPU)


@pytest.mark.parametrize(
    ("usage", "load", "expected"),
    [
        (Usage(), Load.HEAVY, None),  # nothing is known of the transfer: 1.8 s of 6.8 s leave room
        (Usage(cpu_ratio=1.0, transfer_s=1.8), Load.HEAVY, HostLimit.CPU),
        (Usage(cpu_ratio=0.69, transfer_s=1.8), Load.HEAVY, None),
        (Usage(cpu_ratio=1.0, transfer_s=0.4), Load.HEAVY, None),  # so short, its handshakes may be most of the work
        (Usage(cpu_ratio=1.0, transfer_s=1.8), Load.LIGHT, None),
    ],
)
def test_idle_phases_hide_no_busy_transfer(usage: Usage, load: Load, expected: HostLimit | None) -> None:
    """1.8 s of a full core within 6.8 s, of which the rest was spent on an idle line and on stragglers."""
    fitness = judged(Reading(0), Reading(6_800_000_000, cpu_ns=1_800_000_000), load, usage=usage)
    assert (fitness.own_cpu_ratio, fitness.host_limited_by) == (0.2647, expected)
    assert fitness.host_limited is (expected is not None)


@pytest.mark.parametrize(
    ("waited_s", "transfer_s", "expected"),
    [(1.4, None, None), (1.4, 2.0, HostLimit.CPU), (1.1, 2.0, None), (0.35, 0.4, None)],
)
def test_idle_phases_hide_no_transfer_without_a_core(
    waited_s: float, transfer_s: float | None, expected: HostLimit | None
) -> None:
    """The transfer's thread waited for 70 % of the transfer, which was a fifth of the measurement."""
    after = Reading(7 * S, workers_wait_ns=round(waited_s * S))
    usage = Usage(cpu_ratio=0.2, transfer_s=transfer_s)
    fitness = judged(Reading(0, workers_wait_ns=0), after, Load.HEAVY, usage=usage)
    assert fitness.cpu_wait_ratio == round(waited_s / 7, 4)
    assert fitness.host_limited_by is expected


def test_the_wait_of_a_thread_outlives_it() -> None:
    """The kernel forgets it with the thread; here it is added up."""
    before_ns = ended_wait_ns()
    with ThreadPoolExecutor(max_workers=1) as executor:
        assert executor.submit(counted, len, "work").result() == 4
    assert (thread_wait_ns() is None) == (ended_wait_ns() is None)
    assert before_ns is None or (ended_wait_ns() or 0) >= before_ns


def test_the_rate_that_a_task_found_counts_for_the_interface() -> None:
    """Its own figure, not the mean with the ramp in it."""
    limits = (Usage(rate_bps=95e6), Usage())
    told, silent = (Evidence(rate_bps=one.rate_bps, nic_speed_bps=100_000_000) for one in limits)
    assert (limit_of(Load.HEAVY, told), limit_of(Load.HEAVY, silent)) == (HostLimit.NIC, None)


@pytest.mark.parametrize(
    ("load", "evidence", "expected"),
    [
        (Load.HEAVY, Evidence(), None),
        (Load.HEAVY, Evidence(own_cpu_ratio=0.69, wait_ratio=0.1, softirq_ratio=0.79), None),
        (Load.HEAVY, Evidence(own_cpu_ratio=0.71), HostLimit.CPU),
        (Load.HEAVY, Evidence(own_cpu_ratio=0.71, firmware_throttled=True), HostLimit.THERMAL),
        # A thread that waits for most of the time is not there when something comes; the buffers bridge shorter waits.
        (Load.HEAVY, Evidence(own_cpu_ratio=0.01, wait_ratio=0.7), HostLimit.CPU),
        (Load.HEAVY, Evidence(own_cpu_ratio=0.3, wait_ratio=0.46), None),
        # Idle phases around a transfer take nothing from what it says of itself.
        (Load.HEAVY, Evidence(own_cpu_ratio=0.2, transfer_cpu_ratio=0.71), HostLimit.CPU),
        (Load.HEAVY, Evidence(own_cpu_ratio=0.2, transfer_cpu_ratio=0.71, firmware_throttled=True), HostLimit.THERMAL),
        (Load.HEAVY, Evidence(own_cpu_ratio=0.71, transfer_cpu_ratio=0.2), HostLimit.CPU),
        (Load.HEAVY, Evidence(wait_ratio=0.2, transfer_wait_ratio=0.61), HostLimit.CPU),
        (Load.HEAVY, Evidence(wait_ratio=0.2, transfer_wait_ratio=0.59, transfer_cpu_ratio=0.69), None),
        (Load.HEAVY, Evidence(softirq_ratio=0.81), HostLimit.SOFTIRQ),
        (Load.HEAVY, Evidence(steal_ratio=0.11, own_cpu_ratio=0.8), HostLimit.STEAL),
        (Load.HEAVY, Evidence(cgroup_throttled_ratio=1.0, own_cpu_ratio=0.1), HostLimit.CGROUP),
        (Load.HEAVY, Evidence(memory_stall_ratio=0.2), HostLimit.MEMORY),
        (Load.HEAVY, Evidence(rate_bps=94e6, nic_speed_bps=100_000_000), HostLimit.NIC),
        (Load.HEAVY, Evidence(rate_bps=89e6, nic_speed_bps=100_000_000), None),
        (Load.HEAVY, Evidence(rate_bps=94e6), None),
        # What is hot and still has time to spare is no limit; the flag `throttled` says it anyway.
        (Load.HEAVY, Evidence(firmware_throttled=True, own_cpu_ratio=0.2), None),
        # The kernel stamps packets: a busy process, or a busy core, does a light measurement no harm.
        (Load.LIGHT, Evidence(own_cpu_ratio=0.95, rate_bps=94e6, nic_speed_bps=100_000_000), None),
        (Load.LIGHT, Evidence(wait_ratio=0.1), None),
        (Load.LIGHT, Evidence(wait_ratio=0.3), HostLimit.CPU),
        (Load.LIGHT, Evidence(wait_ratio=0.3, firmware_throttled=True), HostLimit.THERMAL),
        (Load.LIGHT, Evidence(cgroup_throttled_ratio=0.5), HostLimit.CGROUP),
        (Load.LIGHT, Evidence(steal_ratio=0.2), HostLimit.STEAL),
    ],
)
def test_who_was_the_limit(load: Load, evidence: Evidence, expected: HostLimit | None) -> None:
    """Each rule of the reference page, on both sides of its threshold."""
    assert limit_of(load, evidence) is expected


def test_this_host_can_be_read() -> None:
    """The real files give a figure for each core, and none for the traffic of the loopback."""
    own = read("lo")
    assert len(own.cores) == Path("/proc/stat").read_text(encoding="ascii").count("\ncpu")
    assert all(0 <= core.softirq + core.steal <= core.busy <= core.total for core in own.cores)
    assert own.traffic is None
    assert own.cpu_ns > 0


def test_a_real_measurement_has_its_shares() -> None:
    """Between two real readings a process that computes is seen to compute, and to be no limit of a light task."""
    keeper = FitnessJudge()
    begun = keeper.begin(LINE)
    sum(range(2_000_000))
    fitness = keeper.end(begun, Load.LIGHT, LINE, Usage(), ip_version=4, own_load=False)
    assert fitness.own_cpu_ratio is not None
    assert fitness.own_cpu_ratio > 0
    assert fitness.nic_speed_bps is None
    assert fitness.host_limited is not None


def test_a_pi_tells_its_throttling(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The firmware's bits of this moment count, those since boot do not; rubbish is no figure."""
    file = tmp_path / "get_throttled"
    monkeypatch.setattr(host_readings, "_HAS_FIRMWARE", True)
    monkeypatch.setattr(host_readings, "_THROTTLED", str(file))
    for text, expected in (("50005\n", True), ("50000\n", False), ("0", False), ("rubbish", None)):
        file.write_text(text, encoding="ascii")
        assert read(None).firmware_throttled is expected
    file.unlink()
    assert read(None).firmware_throttled is None


CPU_STAT_V1 = "nr_periods 12\nnr_throttled 11\nthrottled_time 1696143320\n"
CPU_STAT_V2 = "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 7\nnr_throttled 6\nthrottled_usec 99\n"


@pytest.mark.parametrize(
    ("cgroups", "file", "text", "expected"),
    [
        ("4:memory:/m\n3:cpu,cpuacct:/probe\n0::/\n", "cpu,cpuacct/probe", CPU_STAT_V1, Throttling(12, 11)),
        ("1:cpu:/probe\n0::/\n", "cpu/probe", CPU_STAT_V1, Throttling(12, 11)),
        ("0::/system.slice/probe.service\n", "system.slice/probe.service", CPU_STAT_V2, Throttling(7, 6)),
        # A container that is told the path outside of it finds its own group at the root.
        ("0::/docker/abc\n", "", CPU_STAT_V2, Throttling(7, 6)),
        # The root group of a host, or a kernel without quotas.
        ("0::/\n", "", "usage_usec 5\n", None),
        ("0::/\n", "elsewhere", CPU_STAT_V2, None),
    ],
)
def test_the_own_cgroup_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cgroups: str, file: str, text: str, expected: Throttling | None
) -> None:
    """Both versions of control groups, in a container and on a host."""
    (tmp_path / "own").write_text(cgroups, encoding="utf-8")
    (tmp_path / file).mkdir(parents=True, exist_ok=True)
    (tmp_path / file / "cpu.stat").write_text(text, encoding="utf-8")
    monkeypatch.setattr(host_readings, "_OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(host_readings, "_CGROUP_MOUNT", tmp_path)
    host_readings._throttling_file.cache_clear()
    try:
        assert read(None).throttling == expected
    finally:
        host_readings._throttling_file.cache_clear()


def test_files_that_say_nothing_are_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A kernel without pressure accounting and without scheduler statistics: no figures, no crash."""
    for name in ("_CPU_PRESSURE", "_MEMORY_PRESSURE", "_PROC_STAT"):
        monkeypatch.setattr(host_readings, name, str(tmp_path / "absent"))
    monkeypatch.setattr(core_time, "_SCHEDSTAT", str(tmp_path / "absent"))
    nothing = read(None)
    assert (nothing.cpu_pressure_ns, nothing.memory_stall_ns, nothing.wait_ns, nothing.cores) == (None, None, None, ())
