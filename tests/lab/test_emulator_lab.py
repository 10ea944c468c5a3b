"""The emulated line under real traffic: what ping and iperf3 see of it between two namespaces."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fleet_controller.errors import ServiceError
from fleet_controller.lab import namespaces
from fleet_controller.lab.emulator import EmulatedLink, End
from fleet_controller.lab.line import LinkProfile, tcp_payload_bps
from fleet_controller.lab.namespaces import command_in, entered, exists, namespace, run_in, run_ip
from fleet_controller.lab.services import answers, die_with_parent

NEAR_ADDRESS, FAR_ADDRESS = "198.18.0.2", "198.18.0.1"  # RFC 2544's benchmarking range
PORT = 5201


@pytest.fixture
def ends() -> Iterator[tuple[End, End]]:
    """Two namespaces, and where the line is to end in them."""
    with namespace("near") as near, namespace("far") as far:
        yield End(near, "wan0", f"{NEAR_ADDRESS}/30"), End(far, "line0", f"{FAR_ADDRESS}/30")


def emulated(tmp_path: Path, ends: tuple[End, End], profile: LinkProfile) -> EmulatedLink:
    """A line between the ends, not yet started."""
    return EmulatedLink(tmp_path / "line", profile, *ends)


def ping_ms(line: EmulatedLink, count: int, *arguments: str) -> list[float]:
    """Round-trip times of the answered requests."""
    command = ["ping", "-i", "0.02", "-c", str(count), "-W", "2", *arguments, FAR_ADDRESS]
    said = run_in(line.near.namespace, command).stdout
    return [float(text) for text in re.findall(r"time=([0-9.]+) ms", said)]


@contextmanager
def iperf3_server(line: EmulatedLink) -> Iterator[None]:
    """iperf3 at the far end."""
    command = command_in(line.far.namespace, ["iperf3", "-s", "-B", FAR_ADDRESS])
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=die_with_parent) as server:  # noqa: PLW1509 - one thread
        try:
            with entered(line.far.namespace):
                deadline = time.monotonic() + 10
                while not answers(FAR_ADDRESS, PORT):
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
            yield
        finally:
            server.kill()


def iperf3(line: EmulatedLink, *arguments: str) -> Any:
    """The end summary of one iperf3 run of 3 s after 1 s of ramp."""
    command = ["iperf3", "-c", FAR_ADDRESS, "-J", "-t", "3", "-O", "1", *arguments]
    done = run_in(line.near.namespace, command)
    return json.loads(done.stdout)["end"]


# At half a gigabit a busy test machine's own TCP is not always quick enough to fill the line.
@pytest.mark.parametrize(("download_bps", "tolerance_ratio"), [(150_000_000, 0.01), (500_000_000, 0.03)])
def test_tcp_gets_the_configured_rate(
    tmp_path: Path, ends: tuple[End, End], download_bps: int, tolerance_ratio: float
) -> None:
    """Both ways within 1 % of the payload share of the rate, with super-packets on the way."""
    profile = LinkProfile(download_bps, download_bps // 2, 0.006)
    with emulated(tmp_path, ends, profile) as line, iperf3_server(line):
        down = iperf3(line, "-P", "4", "-R")["sum_received"]["bits_per_second"]
        up = iperf3(line, "-P", "4")["sum_received"]["bits_per_second"]
    assert down == pytest.approx(tcp_payload_bps(profile.download_bps), rel=tolerance_ratio)
    assert up == pytest.approx(tcp_payload_bps(profile.upload_bps), rel=tolerance_ratio)


def test_udp_over_the_rate_is_cut_to_it(tmp_path: Path, ends: tuple[End, End]) -> None:
    """Twice the rate offered: half arrives, the rest fell off the buffer's tail."""
    profile = LinkProfile(20_000_000, 10_000_000, 0.010, buffer_s=0.05)
    with emulated(tmp_path, ends, profile) as line, iperf3_server(line):
        # 1200 bytes of payload travel in 1228 bytes of IP.
        payload_bps = 10e6 * 1200 / 1228
        end = iperf3(line, "-u", "-b", f"{2 * payload_bps:.0f}", "-l", "1200")
    assert end["sum_received"]["bits_per_second"] == pytest.approx(payload_bps, rel=0.03)
    dropped = line.counters()["upload"].dropped
    assert dropped > 0
    assert line.counters()["upload"].lost == 0


@pytest.mark.parametrize("delay_s", [0.006, 0.045])
def test_the_delay_is_the_configured_one(tmp_path: Path, ends: tuple[End, End], delay_s: float) -> None:
    """The median round trip is within 0.5 ms of the configured delay."""
    with emulated(tmp_path, ends, LinkProfile(100_000_000, 100_000_000, delay_s)) as line:
        times = sorted(ping_ms(line, 60))
    assert len(times) == 60
    assert times[30] == pytest.approx(delay_s * 1000, abs=0.5)


def test_jitter_and_loss_are_as_configured(tmp_path: Path, ends: tuple[End, End]) -> None:
    """8 ms wide about a median of 40, in order; 5 % lost each way leaves 90 % of the answers."""
    profile = LinkProfile(100_000_000, 100_000_000, 0.040, 0.008, 0.05)
    with emulated(tmp_path, ends, profile) as line:
        times = sorted(ping_ms(line, 400))
    assert times[len(times) // 2] == pytest.approx(40, abs=0.5)
    assert times[0] == pytest.approx(36, abs=0.5)
    assert times[-(-len(times) * 95 // 100) - 1] - times[0] == pytest.approx(8, abs=0.5)
    assert len(times) == pytest.approx(361, abs=27)  # 4.5 standard deviations
    lost = sum(counters.lost for counters in line.counters().values())
    assert lost == 400 - len(times)


def test_a_full_buffer_delays_by_its_depth(tmp_path: Path, ends: tuple[End, End]) -> None:
    """TCP that fills a 100 ms buffer adds 100 ms to the round trip of everyone else."""
    profile = LinkProfile(20_000_000, 5_000_000, 0.010, buffer_s=0.1)
    with emulated(tmp_path, ends, profile) as line, iperf3_server(line):
        command = command_in(line.near.namespace, ["iperf3", "-c", FAR_ADDRESS, "-t", "4", "-P", "4"])
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=die_with_parent) as load:  # noqa: PLW1509 - one thread
            times = ping_ms(line, 150)
            load.wait(20)
    assert max(times) == pytest.approx(110, abs=6)


def test_two_lines_to_one_place_stay_apart(tmp_path: Path, ends: tuple[End, End]) -> None:
    """A socket bound to a device uses that line, whichever the main route is."""
    near, far = ends
    second = End(near.namespace, "wan1", "198.18.0.6/30"), End(far.namespace, "line1", "198.18.0.5/30")
    run_ip("-n", far.namespace, "address", "add", "198.18.255.1/32", "dev", "lo")
    slow, fast = LinkProfile(10**8, 10**8, 0.060), LinkProfile(10**8, 10**8, 0.010)
    with EmulatedLink(tmp_path / "0", slow, near, far), EmulatedLink(tmp_path / "1", fast, *second):
        for metric, (device, gateway) in enumerate((("wan0", FAR_ADDRESS), ("wan1", "198.18.0.5"))):
            where = ("dev", device, "metric", str(metric + 1))
            run_ip("-n", near.namespace, "route", "add", "default", "via", gateway, *where)
        medians = {}
        for device in ("wan0", "wan1"):
            said = run_in(near.namespace, ["ping", "-I", device, "-i", "0.02", "-c", "21", "198.18.255.1"]).stdout
            medians[device] = sorted(float(text) for text in re.findall(r"time=([0-9.]+)", said))[10]
    assert medians == {"wan0": pytest.approx(60, abs=1), "wan1": pytest.approx(10, abs=1)}


def devices_in(name: str) -> str:
    """What interfaces a namespace has."""
    return run_ip("-n", name, "-brief", "link")


def wait_until_gone(name: str, device: str) -> None:
    """Wait until the kernel took a device away."""
    deadline = time.monotonic() + 10
    while device in devices_in(name):
        assert time.monotonic() < deadline, f"{device} stays"
        time.sleep(0.02)


def test_a_stopped_or_killed_line_leaves_no_device_and_can_come_back(tmp_path: Path, ends: tuple[End, End]) -> None:
    """The devices live as long as the process, and a line that was killed starts again."""
    line = emulated(tmp_path, ends, LinkProfile(10**8, 10**8, 0.010))
    for end_it in (line.kill, line.stop):
        line.start()
        assert "wan0" in devices_in(ends[0].namespace)
        assert len(ping_ms(line, 3)) == 3
        end_it()
        wait_until_gone(ends[0].namespace, "wan0")
        wait_until_gone(ends[1].namespace, "line0")


PARENT = """
import sys, time
from pathlib import Path
from fleet_controller.lab.emulator import EmulatedLink, End
from fleet_controller.lab.line import LinkProfile
near, far, folder = sys.argv[1:]
EmulatedLink(Path(folder), LinkProfile(10**8, 10**8, 0.01), End(near, "wan0", "198.18.0.2/30"),
             End(far, "line0", "198.18.0.1/30")).start()
print("up", flush=True)
time.sleep(100)
"""


def test_the_line_dies_with_its_parent(tmp_path: Path, ends: tuple[End, End]) -> None:
    """SIGKILL of the process that started it takes the line and its devices away."""
    near, far = (end.namespace for end in ends)
    command = [sys.executable, "-c", PARENT, near, far, str(tmp_path / "line")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=die_with_parent) as parent:  # noqa: PLW1509 - one thread
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        assert "wan0" in devices_in(near)
        parent.send_signal(signal.SIGKILL)
        parent.wait(10)
    wait_until_gone(near, "wan0")


def test_a_line_to_nowhere_says_so(tmp_path: Path, ends: tuple[End, End]) -> None:
    """A namespace that does not exist is an error with the reason, not a hang."""
    line = EmulatedLink(
        tmp_path / "x", LinkProfile(10**8, 10**8, 0.01), ends[0], End("pf-no-such", "line0", "198.18.0.1/30")
    )
    with pytest.raises(ServiceError, match="No such file or directory"):
        line.start()


def test_a_device_name_in_use_is_an_error(tmp_path: Path, ends: tuple[End, End]) -> None:
    """Two lines cannot end in one device."""
    profile = LinkProfile(10**8, 10**8, 0.01)
    with (
        emulated(tmp_path, ends, profile),
        pytest.raises(ServiceError, match="busy"),
    ):
        EmulatedLink(tmp_path / "second", profile, *ends).start()


def test_a_namespace_is_made_ready_and_removed_twice() -> None:
    """Loopback is up, ICMP sockets are allowed, sockets stay where they were opened; removal is idempotent."""
    with namespace("n") as name, entered(name):
        home_devices = socket.if_nameindex()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as sock:
            sock.settimeout(2)
            sock.sendto(b"\x08\0\0\0\0\0\0\1", ("127.0.0.1", 0))
            assert sock.recv(100)[:1] == b"\0"
    assert [device for _, device in home_devices] == ["lo"]
    assert len(socket.if_nameindex()) > 1
    assert not exists(name)
    namespaces.delete(name)


def test_the_sweep_takes_the_namespaces_of_dead_processes_only() -> None:
    """One of a process that is gone is removed, one of ours stays."""
    with subprocess.Popen(["sleep", "60"]) as child:
        orphan = namespaces.owner_prefix(child.pid) + "x"
        run_ip("netns", "add", orphan)
        child.kill()
    with namespace("mine") as mine:
        assert orphan in namespaces.sweep()
        assert exists(mine)
    assert not exists(orphan)


def test_the_thread_is_back_home_after_an_error() -> None:
    """An exception inside a namespace does not leave the thread there."""
    mine = Path("/proc/thread-self/ns/net")
    home = mine.readlink()

    def fail_inside(name: str) -> None:
        with entered(name):
            assert mine.readlink() != home
            raise RuntimeError("inside")

    with namespace("n") as name, pytest.raises(RuntimeError, match="inside"):
        fail_inside(name)
    assert mine.readlink() == home
