"""Sites of the named profiles under real traffic: what the kernel's TCP and the probe see of them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Literal

import pytest

from fleet_controller.errors import ConfigError, ServiceError
from fleet_controller.lab import namespaces
from fleet_controller.lab.compare import compare
from fleet_controller.lab.comparison import Comparison
from fleet_controller.lab.emulator import EmulatedLink
from fleet_controller.lab.namespaces import entered
from fleet_controller.lab.nginx import Nginx
from fleet_controller.lab.profile import LinkProfile, RateStep
from fleet_controller.lab.site import GATEWAY_V4, NEAR_V4, PEER_V4, PEER_V6, Site
from probe.messages import Peer

NETNS = Path("/var/run/netns")


def capacity(site: Site, **parameters: Any) -> float:
    """The error of one measured rate, as a share of the configured one."""
    run = site.measure("capacity", {"mode": "capped", "max_bytes": 10_000_000} | parameters)
    (comparison,) = compare(site, run)
    assert isinstance(comparison, Comparison)
    assert comparison.error_ratio is not None
    return comparison.error_ratio


def transfer(site: Site, content: bytes) -> bytes:
    """Send over one TCP connection from the far end to the near one; gives what arrived."""
    with entered(site.far):
        server = socket.create_server((PEER_V4, 7000))
    with entered(site.near):
        client = socket.create_connection((PEER_V4, 7000), timeout=10)

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.settimeout(60)
            connection.sendall(content)

    sending = threading.Thread(target=serve)
    sending.start()
    arrived = bytearray()
    with server, client:
        client.settimeout(20)
        while piece := client.recv(1 << 20):
            arrived += piece
        sending.join()
    return bytes(arrived)


@pytest.mark.parametrize("shaper", ["emulator", "kernel"])
def test_the_kernel_and_the_emulator_enforce_the_same_rate(shaper: Literal["emulator", "kernel"]) -> None:
    """A token bucket and the emulated line, 100 Mbit/s of IP: the probe finds both at their payload rate."""
    with Site(LinkProfile(100_000_000, 100_000_000, 0.004), shaper=shaper) as site:
        assert capacity(site, direction="download", ip_version=4) == pytest.approx(0, abs=0.03)
        assert capacity(site, direction="upload", ip_version=6) == pytest.approx(0, abs=0.03)


def test_the_kernel_refuses_what_it_cannot_shape() -> None:
    """It has no loss: a profile with one needs the emulator, and says so."""
    with pytest.raises(ConfigError, match="use the emulator"), Site("4g_edge", shaper="kernel"):
        pass


def test_nginx_serves_and_swallows_behind_the_line() -> None:
    """A download from it and an upload to it, both at the rate of the line."""
    with Site("cable", nginx=True) as site:
        for direction, max_bytes in (("download", 30_000_000), ("upload", 5_000_000)):  # more than the ramp takes
            parameters = {"direction": direction, "mode": "capped", "max_bytes": max_bytes}
            (comparison,) = compare(site, site.measure("capacity", parameters, peer="nginx"))
            assert isinstance(comparison, Comparison)
            assert comparison.error_ratio == pytest.approx(0, abs=0.05)


def test_content_survives_loss_reordering_and_copies_inside_super_packets() -> None:
    """12 MB over a line that does all of it to packets of super-packets: every byte is the one that was sent."""
    profile = LinkProfile(
        *(200_000_000, 200_000_000, 0.004),
        loss_ratio=0.002,
        loss_burst_packets=2,
        reorder_ratio=0.005,
        reorder_gap_s=0.002,
        duplicate_ratio=0.005,
    )
    content = os.urandom(12_000_000)
    with Site(profile) as site:
        arrived = transfer(site, content)
        assert isinstance(site.link, EmulatedLink)
        site.link.stop()
        down = site.link.counters()["download"]
    assert hashlib.sha256(arrived).digest() == hashlib.sha256(content).digest()
    assert down.offered > 12_000_000 / 1448
    # 5 standard deviations each.
    for hit, ratio, spread in ((down.lost, 0.002, 4), (down.delayed, 0.005, 1), (down.duplicated, 0.005, 1)):
        expected = (down.offered - down.dropped) * ratio
        assert hit == pytest.approx(expected, abs=5 * (expected * spread) ** 0.5)


def test_ten_thousand_packets_lose_a_percent() -> None:
    """UDP as fast as it goes: what arrives is what the line says, and the loss is within the binomial 95 % interval."""
    with Site(LinkProfile(400_000_000, 400_000_000, 0.002, loss_ratio=0.01, buffer_s=2.0), seed=2) as site:
        with entered(site.far):
            server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with entered(site.near):
            client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with server, client:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 25)
            server.setblocking(False)  # noqa: FBT003 - the socket API takes it so
            server.bind((PEER_V4, 7000))
            received = 0
            for number in range(10_000):
                client.sendto(bytes(100), (PEER_V4, 7000))
                if number % 50 == 49:
                    time.sleep(0.002)
                    received += len(drain(server))
            time.sleep(0.1)
            received += len(drain(server))
        assert isinstance(site.link, EmulatedLink)
        site.link.stop()
        counted = site.link.counters()["upload"].lost
    assert received == 10_000 - counted
    assert counted == pytest.approx(100, abs=1.96 * (10_000 * 0.01 * 0.99) ** 0.5)


def drain(server: socket.socket) -> list[bytes]:
    """What has come."""
    got = []
    while True:
        try:
            got.append(server.recv(200))
        except BlockingIOError:
            return got


@pytest.mark.parametrize(("profile", "works", "kind"), [("ipv6_broken", 4, None), ("v6_only", 6, "no_answer")])
def test_one_ip_version_works_and_the_other_does_not(profile: str, works: int, kind: str | None) -> None:
    """Broken IPv6 has a name, an address and silence; where there is no IPv4 there is no A record."""
    with Site(profile) as site:
        parameters = {"packets": 3, "interval_s": 0.02, "time_out_s": 0.5}
        good = site.run("round_trip", parameters | {"ip_version": works}).values
        bad = site.run("round_trip", parameters | {"ip_version": 10 - works})
        names = site.run("dns", {"name": "peer.test", "record_type": "AAAA"}, peer=None).values
    assert good is not None
    assert good["packets_received"] == 3
    assert names is not None
    assert names["answers"] == 1
    if kind is None:
        assert bad.values is not None
        assert bad.values["packets_received"] == 0
    else:
        assert bad.failure is not None
        assert bad.failure.kind == kind


def ping(site: Site, payload_bytes: int, host: str) -> str:
    """What one ping that may not be fragmented says."""
    command = ["ping", "-c", "2", "-i", "0.1", "-W", "1", "-M", "do", "-s", str(payload_bytes), host]
    done = site.run_near(command)
    return done.stdout + done.stderr


@pytest.mark.parametrize(("host", "header_bytes"), [(PEER_V4, 28), (PEER_V6, 48)])
def test_a_small_path_mtu_is_told_or_swallows(host: str, header_bytes: int) -> None:
    """A packet of 1400 bytes passes; one more byte brings an ICMP message with the MTU, or silence."""
    with Site("pmtu_1400") as site:
        assert " 0% packet loss" in ping(site, 1400 - header_bytes, host)
        told = ping(site, 1401 - header_bytes, host)
        assert "mtu = 1400" in told or "mtu=1400" in told or "mtu: 1400" in told
    with Site("pmtu_blackhole") as site:
        assert " 0% packet loss" in ping(site, 1400 - header_bytes, host)
        swallowed = ping(site, 1401 - header_bytes, host)
        assert "100% packet loss" in swallowed
        assert "mtu" not in swallowed


def test_tcp_shrinks_its_segments_where_it_is_told() -> None:
    """The tunnel carries its rate less its larger share of headers."""
    with Site("pmtu_1400") as site:
        assert capacity(site, direction="upload") == pytest.approx(0, abs=0.03)


def test_a_rate_that_changes_is_known_for_every_moment() -> None:
    """Steps between 20 and 5 Mbit/s: what the line says it enforced is what bulk traffic got of it meanwhile."""
    steps = (RateStep(0.7, 1.0), RateStep(0.5, 0.25))
    with Site(LinkProfile(20_000_000, 20_000_000, 0.004, rate_steps=steps)) as site:
        assert isinstance(site.link, EmulatedLink)
        began_ns = time.monotonic_ns()
        transfer(site, bytes(2_500_000))
        ended_ns = time.monotonic_ns()
        mean_bps = site.link.mean_rate_bps("download", began_ns, ended_ns)
        site.link.stop()
        carried_bps = site.link.counters()["download"].delivered_bytes * 8e9 / (ended_ns - began_ns)
    assert mean_bps < 17e6
    assert carried_bps == pytest.approx(mean_bps, rel=0.06)


def test_the_site_has_a_gateway_and_more_servers_can_be_put_behind_it() -> None:
    """The default route leads over the line; a wrong parameter is the caller's mistake, with the probe's words."""
    with Site("v4_only") as site:
        routes = site.run_near(["ip", "route"]).stdout
        assert f"default via {GATEWAY_V4} dev wan0" in routes
        assert NEAR_V4 in site.run_near(["ip", "-brief", "address"]).stdout
        with pytest.raises(ServiceError, match="no such parameter"):
            site.run("round_trip", {"pakets": 3})
        more = Nginx(site.directory / "more", site.directory, hosts=[PEER_V4], port=8081)
        site.start_far(more)
        site.add_peer(Peer(name="more", host=PEER_V4, http_port=8081))
        assert site.run("capacity", {"mode": "capped", "max_bytes": 1_000_000}, peer="more").values


LAB = [sys.executable, "-m", "fleet_controller.cli", "lab"]


def leftovers(pid: int) -> list[str]:
    """Namespaces and temporary folders of a process."""
    prefix = f"pf-{pid}-"
    return [path.name for folder in (NETNS, Path("/tmp")) for path in folder.iterdir() if path.name.startswith(prefix)]  # noqa: S108


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_behind(number: signal.Signals) -> None:
    """Once in mid-measurement, and once more while it takes everything down: no namespace, no folder, no process."""
    command = [*LAB, "run", "satellite", "capacity"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 20
        while len(leftovers(process.pid)) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(1.0)
        process.send_signal(number)
        time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(20) == 130
        assert leftovers(process.pid) == []


def processes_in(folder: str) -> list[str]:
    """The command lines of everything that was started with a file of this folder."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in lines if folder in line]


def test_a_killed_lab_takes_its_servers_along_and_the_next_one_cleans_up() -> None:
    """SIGKILL: line, peer, resolver and nginx die with it; its namespaces and its folder go with the next command."""
    command = [*LAB, "run", "cable", "round_trip", "-p", "packets=1000", "-p", "interval_s=1", "--peer", "nginx"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 20
        while not any("nginx" in line for line in processes_in(f"pf-{process.pid}-")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.kill()
    while processes_in(f"pf-{process.pid}-"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    namespaces.sweep()  # if no other process was quicker
    assert leftovers(process.pid) == []


def test_the_command_prints_configured_against_measured() -> None:
    """For people and for programs; a profile that does not exist is wrong usage, with a proposal."""
    arguments = ["run", "ftth_150_100", "round_trip", "-p", "packets=10", "-p", "interval_s=0.01"]
    done = subprocess.run([*LAB, *arguments], capture_output=True, text=True, check=True, timeout=60)
    assert re.search(r"delay_median +configured +6\.010 ms +measured +[0-9.]+ ms", done.stdout)
    said = subprocess.run([*LAB, *arguments, "--json"], capture_output=True, text=True, check=True, timeout=60)
    run = json.loads(said.stdout)["runs"][0]
    assert run["compared"][0]["configured"] == pytest.approx(0.0060096)
    assert run["result"]["values"]["packets_received"] == 10
    wrong = subprocess.run([*LAB, "run", "ftth", "round_trip"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "there is no such profile" in wrong.stderr


def test_a_black_hole_is_a_failure_and_exit_code_one() -> None:
    """TCP is told nothing and its packets vanish: the network said no."""
    done = subprocess.run([*LAB, "run", "pmtu_blackhole", "capacity"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "failed: transfer stalled" in done.stdout


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plainly, and before anything is made."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ServiceError, match="not running as root"), Site("cable"):
        pass
