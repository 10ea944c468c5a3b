"""`round_trip` on lines of known delay and loss, and on lines that go away under it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from round_trip_lab import (
    FAR,
    NEAR,
    TIME_OUT_S,
    finish,
    line_between,
    listener_in,
    measured,
    reflector_in,
    start,
)

from fleet_controller.lab.line import LinkProfile
from fleet_controller.lab.namespaces import entered, run_ip
from probe.peer.reflector import Reflector


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("method", ["stamp", "icmp", "tcp"])
async def test_delay_is_that_of_the_line(tmp_path: Path, near: str, far: str, method: str, version: int) -> None:
    """By every method over both IP versions: the median is within 0.5 ms of the configured delay, nothing is lost."""
    profile = LinkProfile(100_000_000, 100_000_000, 0.02)
    with line_between(tmp_path, near, far, profile):
        async with reflector_in(far, FAR[version]) as reflector:
            with listener_in(far, version, reflector.port):
                parameters = {"method": method, "packets": 30, "interval_s": 0.03, "ip_version": version}
                settings = {"host": FAR[version], "port": reflector.port, "source_v6": NEAR[6]}
                result = await measured(near, "wan0", **settings, parameters=parameters)
    values = result["values"]
    assert values["delay_median_s"] == pytest.approx(profile.expected_delay_s(44), abs=0.0005)
    assert values["delay_min_s"] >= 0.0198
    assert (values["packets_sent"], values["packets_received"], values["loss_bursts"]) == (30, 30, 0)
    assert values["stamped"] == ("kernel_tcp" if method == "tcp" else "kernel_both")


async def test_loss_is_told_by_way(tmp_path: Path, near: str, far: str) -> None:
    """What the line dropped in each direction is what the task says, packet by packet."""
    with line_between(tmp_path, near, far, LinkProfile(100_000_000, 100_000_000, 0.006, loss_ratio=0.1)) as line:
        async with reflector_in(far) as reflector:
            parameters = {"packets": 200, "interval_s": 0.01, "time_out_s": 1.0}
            result = await measured(near, "wan0", port=reflector.port, parameters=parameters)
            reached = reflector.counters.reflected
        line.stop()
    values = result["values"]
    lost = 200 - values["packets_received"]
    split = values["packets_lost_forward"] + values["packets_lost_backward"]
    # Packets after the last answered one belong to neither way: a run of them is short at one in five.
    unknown = values["packets_lost_unattributed"]
    assert unknown == lost - split
    assert unknown <= 10
    assert 0 <= (200 - reached) - values["packets_lost_forward"] <= unknown
    assert 0 <= (reached - values["packets_received"]) - values["packets_lost_backward"] <= unknown
    assert values["packets_lost_forward"] > 0
    assert values["packets_lost_backward"] > 0


async def test_a_delay_beyond_the_kernels_second_syn(tmp_path: Path, near: str, far: str) -> None:
    """Over a line of 1.3 s the kernel repeats the SYN before an answer: it is the first one's all the same."""
    with line_between(tmp_path, near, far, LinkProfile(100_000_000, 100_000_000, 1.3)), listener_in(far, 4, 8080):
        parameters = {"method": "tcp", "packets": 1, "time_out_s": 3.0}
        result = await measured(near, "wan0", port=8080, parameters=parameters)
    assert result["values"]["packets_received"] == 1
    # By its time stamp option (RFC 7323) and not by the clock of the first SYN: to the millisecond.
    assert result["values"]["delay_median_s"] == pytest.approx(1.3, abs=0.003)


async def test_a_line_that_goes_away_is_lost_not_lossy(tmp_path: Path, near: str, far: str) -> None:
    """The device is removed in mid-run (a modem falls off the bus): `link_lost`, although packets were answered."""
    with line_between(tmp_path, near, far, LinkProfile(100_000_000, 100_000_000, 0.006)):
        async with reflector_in(far) as reflector:
            parameters = {"packets": 40, "interval_s": 0.05, "time_out_s": 1.0}
            settings = {"interface": "wan0", "port": reflector.port, "parameters": parameters}
            process = await start(near, settings)
            await reflected(reflector, 5)
            run_ip("-n", near, "link", "del", "wan0")
            result = await finish(process)
    assert result == {"failure": ["send", "link_lost"]}


async def test_a_line_that_is_switched_off_is_lost(tmp_path: Path, near: str, far: str) -> None:
    """The interface is switched off in mid-run and stays off: `link_lost`."""
    with line_between(tmp_path, near, far, LinkProfile(100_000_000, 100_000_000, 0.006)):
        async with reflector_in(far) as reflector:
            parameters = {"packets": 40, "interval_s": 0.05, "time_out_s": 1.0}
            settings = {"interface": "wan0", "port": reflector.port, "parameters": parameters}
            process = await start(near, settings)
            await reflected(reflector, 5)
            run_ip("-n", near, "link", "set", "wan0", "down")
            result = await finish(process)
    assert result["failure"][1] == "link_lost"


async def reflected(reflector: Reflector, packets: int) -> None:
    """Wait until so many packets were answered."""
    async with asyncio.timeout(TIME_OUT_S):
        while reflector.counters.reflected < packets:  # noqa: ASYNC110 - counters have no event
            await asyncio.sleep(0.01)


def write_setting(name: str, key: str, text: str) -> None:
    """Set a sysctl below `net` in a namespace."""
    with entered(name):
        Path("/proc/sys/net", key).write_text(text, encoding="ascii")


@pytest.fixture
def stub(near: str) -> str:
    """A probe's namespace with an Ethernet link `wan0` and nobody at its other end."""
    run_ip("-n", near, "link", "add", "wan0", "type", "veth", "peer", "name", "nobody0")
    for device in ("wan0", "nobody0"):
        run_ip("-n", near, "link", "set", device, "up")
    run_ip("-n", near, "addr", "add", f"{NEAR[4]}/30", "dev", "wan0")
    return near


# By TCP, connecting is the sending.
@pytest.mark.parametrize(("method", "operation"), [("stamp", "send"), ("tcp", "connect")])
async def test_no_route_is_a_failure_to_send(stub: str, method: str, operation: str) -> None:
    """When the kernel takes no packet (an IPv6 link without a route to the peer), the failure is in sending."""
    write_setting(stub, "ipv6/conf/wan0/disable_ipv6", "0")
    run_ip("-n", stub, "addr", "add", "2001:db8::2/64", "dev", "wan0", "nodad")
    parameters = {"method": method, "ip_version": 6, "packets": 2}
    result = await measured(stub, "wan0", host="2001:db8:1::1", parameters=parameters)
    assert result == {"failure": [operation, "network_unreachable"]}


@pytest.mark.parametrize(("method", "operation"), [("stamp", "send"), ("tcp", "connect")])
async def test_ipv4_without_a_route_is_told(stub: str, method: str, operation: str) -> None:
    """For a socket bound to a device Linux takes an address without a route as a neighbour, in silence: we ask it."""
    parameters = {"method": method, "packets": 2, "interval_s": 0.01, "time_out_s": 0.1}
    result = await measured(stub, "wan0", host="203.0.113.1", parameters=parameters)
    assert result == {"failure": [operation, "network_unreachable"]}


async def test_silence_behind_a_route_is_a_value(stub: str) -> None:
    """Another table, chosen by the source address, has a route: then two packets were sent, and lost on the way.

    The gateway has answered for its address once; now it is silent.
    """
    run_ip("-n", stub, "neigh", "add", FAR[4], "lladdr", "02:00:00:00:00:01", "dev", "wan0", "nud", "reachable")
    run_ip("-n", stub, "route", "add", "203.0.113.0/24", "via", FAR[4], "table", "100")
    run_ip("-n", stub, "rule", "add", "from", NEAR[4], "table", "100")
    parameters = {"packets": 2, "interval_s": 0.01, "time_out_s": 0.1}
    result = await measured(stub, "wan0", host="203.0.113.1", parameters=parameters)
    assert (result["values"]["packets_sent"], result["values"]["packets_received"]) == (2, 0)


async def test_nobody_at_the_other_end(stub: str) -> None:
    """No one answers ARP for the peer. The kernel tells ICMP sockets so, and that is a failure to receive, at once."""
    write_setting(stub, "ipv4/neigh/wan0/mcast_solicit", "1")
    write_setting(stub, "ipv4/neigh/wan0/retrans_time_ms", "100")
    parameters = {"method": "icmp", "packets": 3, "interval_s": 0.05, "time_out_s": 30}
    assert await measured(stub, "wan0", parameters=parameters) == {"failure": ["receive", "host_unreachable"]}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("method", "operation"), [("stamp", "receive"), ("icmp", "receive"), ("tcp", "connect")])
async def test_a_gateway_that_is_gone_is_told(stub: str, method: str, operation: str, version: int) -> None:
    """However short the series, and although the kernel tells no UDP socket: no packet has left, so none was lost."""
    gateway, host = (FAR[4], "203.0.113.1") if version == 4 else ("2001:db8::1", "2001:db8:1::1")
    if version == 6:
        write_setting(stub, "ipv6/conf/wan0/disable_ipv6", "0")
        run_ip("-n", stub, "addr", "add", "2001:db8::2/64", "dev", "wan0", "nodad")
    run_ip("-n", stub, f"-{version}", "route", "add", "default", "via", gateway)
    parameters = {"method": method, "ip_version": version, "packets": 2, "interval_s": 0.01, "time_out_s": 0.1}
    result = await measured(stub, "wan0", host=host, parameters=parameters)
    assert result == {"failure": [operation, "host_unreachable"]}


@pytest.mark.parametrize(
    ("groups", "nobody", "expected"),
    [("0 2147483647", True, "SOCK_DGRAM"), ("1 0", False, "SOCK_RAW")],
)
@pytest.mark.parametrize(("host", "version"), [("127.0.0.1", 4), ("::1", 6)])
async def test_icmp_with_and_without_privilege(
    near: str, groups: str, nobody: bool, expected: str, host: str, version: int
) -> None:
    """A plain user has datagram sockets where the host admits the group; root has raw ones where it does not."""
    write_setting(near, "ipv4/ping_group_range", groups)
    write_setting(near, "ipv6/conf/lo/disable_ipv6", "0")
    parameters = {"method": "icmp", "ip_version": version, "interval_s": 0.01}
    result = await measured(near, "lo", host=host, source_v6="::1", nobody=nobody, parameters=parameters)
    assert result["socket"] == expected
    assert (result["values"]["packets_sent"], result["values"]["packets_received"]) == (10, 10)


async def test_icmp_that_is_not_allowed_says_what_to_do(near: str) -> None:
    """Neither kind of socket: the task did not run, and names the setting."""
    write_setting(near, "ipv4/ping_group_range", "1 0")
    result = await measured(near, "lo", host="127.0.0.1", nobody=True, parameters={"method": "icmp"})
    assert result["not_run"] == "tool_missing"
    assert "net.ipv4.ping_group_range" in result["detail"]
