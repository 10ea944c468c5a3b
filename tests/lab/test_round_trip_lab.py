"""`round_trip` on lines of known delay and loss, and on lines that go away under it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet_controller.lab.emulator import EmulatedLink, End
from fleet_controller.lab.line import LinkProfile
from fleet_controller.lab.namespaces import command_in, entered, namespace, run_ip
from probe.peer.reflector import Reflector

NEAR_ADDRESS, FAR_ADDRESS = "198.18.0.2", "198.18.0.1"  # RFC 2544's benchmarking range
TIME_OUT_S = 60.0

# Runs inside the namespace: says "started", measures once, prints what came out and which kind of socket ICMP got.
INSIDE = """
import asyncio, json, os, sys
import msgspec
from probe.clock import SystemClock
from probe.config import LinkConfig
from probe.errors import MeasurementFailedError, NotRunError
from probe.flows.icmp import open_echo
from probe.links import Link
from probe.messages import Peer
from probe.tasks.base import Context
from probe.tasks.round_trip import RoundTripParameters, measure

settings = json.loads(sys.argv[1])
if settings.get("nobody"):
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
link = Link(LinkConfig(name="l", interface=settings["interface"], source_address_v6=settings.get("source_v6")))
parameters = msgspec.convert(settings["parameters"], RoundTripParameters)
peer = Peer(name="p", host=settings["host"], stamp_port=settings["port"])
context = Context(clock=SystemClock(), time_out_s=60, link=link, peer=peer)
print("started", flush=True)
try:
    result = {"values": msgspec.to_builtins(asyncio.run(measure(context, parameters)))}
except MeasurementFailedError as error:
    result = {"failure": [error.failure.operation, error.failure.kind]}
except NotRunError as error:
    result = {"not_run": error.not_run.reason, "detail": error.not_run.detail}
if "values" in result and parameters.method == "icmp":
    with open_echo(link, parameters.ip_version, 56)[0] as sock:
        result["socket"] = sock.type.name
print(json.dumps(result))
"""


@pytest.fixture
def near() -> Iterator[str]:
    """The probe's namespace."""
    with namespace("near") as name:
        yield name


@pytest.fixture
def far() -> Iterator[str]:
    """The peer's namespace."""
    with namespace("far") as name:
        yield name


def line_between(tmp_path: Path, near: str, far: str, profile: LinkProfile) -> EmulatedLink:
    """A line, not yet started."""
    ends = End(near, "wan0", f"{NEAR_ADDRESS}/30"), End(far, "line0", f"{FAR_ADDRESS}/30")
    return EmulatedLink(tmp_path / "line", profile, *ends)


@contextlib.asynccontextmanager
async def reflector_in(name: str) -> AsyncIterator[Reflector]:
    """A reflector that lives in a namespace."""
    reflector = Reflector()
    with entered(name):
        await reflector.start("0.0.0.0", 0)  # noqa: S104 - every address of the test's own namespace
    try:
        yield reflector
    finally:
        await reflector.stop()


async def start(name: str, settings: dict[str, Any]) -> Process:
    """Start a measurement in a namespace."""
    program = [sys.executable, "-W", "error", "-c", INSIDE, json.dumps({"host": FAR_ADDRESS, "port": 862} | settings)]
    process = await asyncio.create_subprocess_exec(*command_in(name, program), stdout=PIPE, stderr=PIPE)
    assert process.stdout is not None
    async with asyncio.timeout(TIME_OUT_S):
        assert (await process.stdout.readline()).strip() == b"started", (await process.communicate())[1].decode()
    return process


async def finish(process: Process) -> Any:
    """What came out of it."""
    async with asyncio.timeout(TIME_OUT_S):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return json.loads(output)


async def measured(name: str, interface: str, **settings: Any) -> Any:
    """Measure once in a namespace."""
    return await finish(await start(name, {"interface": interface, "parameters": {}} | settings))


@pytest.mark.parametrize("method", ["stamp", "icmp"])
@pytest.mark.parametrize("delay_s", [0.006, 0.045])
async def test_delay_is_that_of_the_line(tmp_path: Path, near: str, far: str, delay_s: float, method: str) -> None:
    """The median of thirty packets is within 0.5 ms of the configured delay, and nothing is lost."""
    with line_between(tmp_path, near, far, LinkProfile(100_000_000, 100_000_000, delay_s)):
        async with reflector_in(far) as reflector:
            parameters = {"method": method, "packets": 30, "interval_s": 0.03}
            result = await measured(near, "wan0", port=reflector.port, parameters=parameters)
    values = result["values"]
    assert values["delay_median_s"] == pytest.approx(delay_s, abs=0.0005)
    assert values["delay_min_s"] >= delay_s - 0.0002
    assert (values["packets_sent"], values["packets_received"]) == (30, 30)


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
    unknown = lost - split
    assert 0 <= unknown <= 10
    assert 0 <= (200 - reached) - values["packets_lost_forward"] <= unknown
    assert 0 <= (reached - values["packets_received"]) - values["packets_lost_backward"] <= unknown
    assert values["packets_lost_forward"] > 0
    assert values["packets_lost_backward"] > 0


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
    run_ip("-n", near, "addr", "add", f"{NEAR_ADDRESS}/30", "dev", "wan0")
    return near


async def test_no_route_is_a_failure_to_send(stub: str) -> None:
    """When the kernel takes no packet (an IPv6 link without a route to the peer), the failure is in sending."""
    write_setting(stub, "ipv6/conf/wan0/disable_ipv6", "0")
    run_ip("-n", stub, "addr", "add", "2001:db8::2/64", "dev", "wan0", "nodad")
    result = await measured(stub, "wan0", host="2001:db8:1::1", parameters={"ip_version": 6})
    assert result == {"failure": ["send", "network_unreachable"]}


async def test_ipv4_without_a_route_is_silence(stub: str) -> None:
    """For a socket bound to a device, Linux takes an IPv4 address without a route as a neighbour: none answers."""
    parameters = {"packets": 2, "interval_s": 0.01, "time_out_s": 0.1}
    result = await measured(stub, "wan0", host="203.0.113.1", parameters=parameters)
    assert (result["values"]["packets_sent"], result["values"]["packets_received"]) == (2, 0)


async def test_nobody_at_the_other_end(stub: str) -> None:
    """No one answers ARP for the peer. The kernel tells ICMP sockets so, and that is a failure to receive, at once."""
    write_setting(stub, "ipv4/neigh/wan0/mcast_solicit", "1")
    write_setting(stub, "ipv4/neigh/wan0/retrans_time_ms", "100")
    parameters = {"method": "icmp", "packets": 3, "interval_s": 0.05, "time_out_s": 30}
    assert await measured(stub, "wan0", parameters=parameters) == {"failure": ["receive", "host_unreachable"]}


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
