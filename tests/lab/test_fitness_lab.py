"""Who was the limit: real measurements on a fast line, by probes that have too little of a computer, and enough."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from authority import Authority
from lab_probe import LabProbe, lab_probe
from lab_site import FAR, NEAR, far_peer

from fleet_controller.lab.emulator import End
from fleet_controller.lab.kernel_shaper import KernelLink
from fleet_controller.lab.namespaces import command_in, namespace, owner_prefix, run_ip
from fleet_controller.lab.profile import LinkProfile
from fleet_controller.lab.services import die_with_parent
from probe.messages import HostLimit, Result

PEER: dict[str, Any] = {"host": FAR, "http_port": 8080, "stamp_port": 8862}
TLS_PEER = PEER | {"http_port": 8443, "tls": True}
CAPACITY = {"direction": "download", "max_duration_s": 2.0}
TRAIN = {"packets": 30, "interval_s": 0.02, "time_out_s": 0.5}
CGROUPS = Path("/sys/fs/cgroup")
HOG = "while True: pass"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Who vouches for the peer."""
    return Authority.make(tmp_path)


@pytest.fixture
def ca_file(authority: Authority) -> str:
    """Whom the probe trusts."""
    return str(authority.file)


@pytest.fixture
def near(authority: Authority) -> Iterator[str]:
    """The probe's end of a line that is as fast as the kernel, with a peer at the other end that demands TLS."""
    with namespace("near") as near, namespace("far") as far, ExitStack() as stack:
        run_ip("link", "add", "wan0", "netns", near, "type", "veth", "peer", "name", "line0", "netns", far)
        for where, device, address in ((near, "wan0", NEAR), (far, "line0", FAR)):
            run_ip("-n", where, "addr", "add", f"{address}/30", "dev", device)
            run_ip("-n", where, "link", "set", device, "up")
        pair = (str(path) for path in authority.issue("far", f"IP:{FAR}"))
        stack.enter_context(far_peer(far, TLS_PEER["http_port"], PEER["stamp_port"], *pair))
        yield near


@pytest.fixture
def slow_near() -> Iterator[str]:
    """The probe's end of a line of 50 Mbit/s, which costs a processor nothing."""
    with namespace("near") as near, namespace("far") as far, ExitStack() as stack:
        ends = End(near, "wan0", f"{NEAR}/30"), End(far, "line0", f"{FAR}/30")
        link = KernelLink(LinkProfile(50_000_000, 50_000_000, 0.0), *ends).start()
        stack.callback(link.stop)
        stack.enter_context(far_peer(far))
        yield near


class ControlGroup:
    """A control group, of whichever version this machine has."""

    def __init__(self) -> None:
        self._is_first_version = (CGROUPS / "cpu").is_dir()
        self.path = (CGROUPS / "cpu" if self._is_first_version else CGROUPS) / f"{owner_prefix()}tenth"
        if not self._is_first_version:
            (CGROUPS / "cgroup.subtree_control").write_text("+cpu", encoding="ascii")
        self.path.mkdir()

    def limit(self, quota_us: int = 10_000, period_us: int = 100_000) -> None:
        """From now on no more CPU than a tenth of a core."""
        if self._is_first_version:
            (self.path / "cpu.cfs_period_us").write_text(f"{period_us}", encoding="ascii")
            (self.path / "cpu.cfs_quota_us").write_text(f"{quota_us}", encoding="ascii")
        else:
            (self.path / "cpu.max").write_text(f"{quota_us} {period_us}", encoding="ascii")

    def within(self) -> list[str]:
        """The beginning of a command line that lives in it."""
        return ["sh", "-c", f'echo $$ > {self.path}/cgroup.procs && exec "$@"', "sh"]


@pytest.fixture
def group() -> Iterator[ControlGroup]:
    """A control group without a limit yet."""
    group = ControlGroup()
    try:
        yield group
    finally:
        _remove(group.path)


def _remove(group: Path) -> None:
    """The kernel takes a moment to let go of processes that have ended."""
    deadline_s = time.monotonic() + 10.0
    while (group / "cgroup.procs").read_text(encoding="ascii").strip() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    group.rmdir()


@contextmanager
def running(count: int, *before: str) -> Iterator[None]:
    """So many processes that do nothing but use a core."""
    with ExitStack() as stack:
        for _ in range(count):
            process = subprocess.Popen(
                [*before, sys.executable, "-c", HOG],
                preexec_fn=die_with_parent,  # noqa: PLW1509 - only sets a flag, started from one thread
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield


def test_a_tenth_of_a_core_is_told(near: str, group: ControlGroup, ca_file: str) -> None:
    """Throttled to a tenth of a core on a line without a limit, the figure is the probe's own, and says so.

    The peer demands TLS: to drop what comes over plain TCP, a tenth of a core can be enough for all that comes here.
    """
    with lab_probe(near, *group.within()) as probe:
        with_all_bps = _capacity_bps(whole := probe.measure("capacity", CAPACITY, peer=TLS_PEER, ca_file=ca_file))
        group.limit()
        with_a_tenth_bps = _capacity_bps(tenth := probe.measure("capacity", CAPACITY, peer=TLS_PEER, ca_file=ca_file))
    assert with_a_tenth_bps < with_all_bps / 2
    assert whole.fitness.host_limited_by is not HostLimit.CGROUP
    fitness = tenth.fitness
    assert fitness.host_limited
    assert fitness.host_limited_by is HostLimit.CGROUP
    assert fitness.cgroup_throttled_ratio is not None
    assert fitness.cgroup_throttled_ratio > 0.2


def _capacity_bps(result: Result) -> float:
    assert result.values is not None
    return float(result.values["capacity_bps"])


def test_a_line_that_the_host_can_carry_is_not_the_hosts_limit(slow_near: str) -> None:
    """50 Mbit/s both ways on a host with time to spare: not limited, and the link was the probe's alone."""
    with lab_probe(slow_near) as probe:
        for direction in ("download", "upload"):
            fitness = probe.measure("capacity", {"direction": direction, "max_duration_s": 3.0}, peer=PEER).fitness
            assert (fitness.host_limited, fitness.host_limited_by) == (False, None)
            assert fitness.own_cpu_ratio is not None
            assert fitness.own_cpu_ratio < 0.5
            assert fitness.cross_traffic_bytes is not None
            assert fitness.cross_traffic_bytes < 100_000


def test_a_quota_that_is_not_used_up_is_no_limit(slow_near: str, group: ControlGroup) -> None:
    """A train of packets within a tenth of a core is measured as well as without a quota."""
    with lab_probe(slow_near, *group.within()) as probe:
        probe.measure("round_trip", TRAIN, peer=PEER)  # the first one still loads code
        group.limit()
        fitness = probe.measure("round_trip", TRAIN, peer=PEER).fitness
    assert (fitness.host_limited, fitness.host_limited_by) == (False, None)


def test_a_busy_core_does_a_round_trip_no_harm(slow_near: str) -> None:
    """Another process uses a core: the kernel stamps the packets, so the host was no limit, and the core is told."""
    with running(1), lab_probe(slow_near) as probe:
        fitness = probe.measure("round_trip", TRAIN, peer=PEER).fitness
    assert (fitness.host_limited, fitness.host_limited_by) == (False, None)
    assert fitness.busiest_core_ratio is not None
    assert fitness.busiest_core_ratio > 0.5


def test_a_round_trip_without_a_core_is_told(slow_near: str, group: ControlGroup) -> None:
    """Its control group is used up by another process: packets leave late or not at all, and the result says why."""
    with lab_probe(slow_near, *group.within()) as probe, running(2, *group.within()):
        group.limit()
        result = probe.measure("round_trip", TRAIN, peer=PEER)
    assert result.values is not None
    assert (result.fitness.host_limited, result.fitness.host_limited_by) == (True, HostLimit.CGROUP)


def test_a_train_that_may_not_leave_is_told(slow_near: str) -> None:
    """The probe has the least priority on a busy host: it waits for a good part of its time, which is a limit."""
    with lab_probe(slow_near, "chrt", "--idle", "0") as probe:
        probe.measure("round_trip", TRAIN, peer=PEER)
        with running(4 * (os.cpu_count() or 1)):
            fitness = probe.measure("round_trip", TRAIN, peer=PEER).fitness
    assert fitness.cpu_wait_ratio is not None
    assert fitness.cpu_wait_ratio > 0.2
    assert (fitness.host_limited, fitness.host_limited_by) == (True, HostLimit.CPU)


def test_the_rate_of_others_is_told_before_and_meanwhile(slow_near: str) -> None:
    """Somebody else's 8 Mbit/s over the link, before and during a light measurement, within a fifth."""
    with lab_probe(slow_near) as probe, others(slow_near, 8e6):
        probe.measure("round_trip", TRAIN, peer=PEER)
        time.sleep(1.5)
        result = probe.measure("round_trip", TRAIN | {"packets": 50}, peer=PEER)
    assert result.duration_s is not None
    assert result.fitness.cross_traffic_before_bps == pytest.approx(8e6, rel=0.2)
    assert (result.fitness.cross_traffic_bytes or 0) * 8 / result.duration_s == pytest.approx(8e6, rel=0.2)


OTHERS = """
import socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
gap_s, due_s = 1200 * 8 / float(sys.argv[2]), time.monotonic()
print("ready", flush=True)
while True:
    sock.sendto(bytes(1200), (sys.argv[1], 9))
    due_s += gap_s
    time.sleep(max(due_s - time.monotonic(), 0))
"""


@contextmanager
def others(where: str, rate_bps: float) -> Iterator[None]:
    """Datagrams at that rate to a port where nobody is."""
    command = command_in(where, [sys.executable, "-c", OTHERS, FAR, str(rate_bps)])
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - only sets a flag, started from one thread
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def test_the_readings_of_one_probe_follow_its_own_link(slow_near: str) -> None:
    """A link that carries nothing of others has none, before or meanwhile."""
    with lab_probe(slow_near) as probe:
        assert _quiet(probe) is None
        time.sleep(1.2)
        rate_bps = _quiet(probe)
    assert rate_bps is not None
    assert rate_bps < 10_000


def _quiet(probe: LabProbe) -> int | None:
    fitness = probe.measure("round_trip", TRAIN, peer=PEER).fitness
    assert fitness.cross_traffic_bytes == 0
    return fitness.cross_traffic_before_bps
