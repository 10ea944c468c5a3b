"""`availability` on a chain of real hosts, each of which fails in turn: near, gateway, operator, peer."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fleet_controller.lab.namespaces import command_in, entered, namespace, run_ip
from probe.flows.echo.routes import next_hop

# Runs in the namespace `near`: says when its window started, watches for one window, prints what it saw.
INSIDE = """
import asyncio, json, sys
import msgspec
from probe.clock import SystemClock
from probe.config import LinkConfig
from probe.links import Link
from probe.messages import Peer
from probe.tasks.availability import AvailabilityParameters, measure
from probe.tasks.base import Context

settings = json.loads(sys.argv[1])
clock = SystemClock()
link = Link(LinkConfig(name="l", interface="line0"))
parameters = msgspec.convert(settings["parameters"], AvailabilityParameters)
peer = Peer(name="p", host=settings["host"])
start_ns = clock.boottime_ns()
context = Context(
    clock=clock, time_out_s=60, link=link, peer=peer, window_s=settings["window_s"], start_boottime_ns=start_ns
)
print(start_ns, flush=True)
print(json.dumps(msgspec.to_builtins(asyncio.run(measure(context, parameters)))))
"""
TIME_OUT_S = 60.0
WINDOW_S = 13.0
# The first questions to gateway and operator are asked in the second round and heard in the third.
HEALTHY_S = 3.3
DOWN_S = 5.0
# Rounds are a second apart, and the end of a fault takes the kernels a moment: routes, neighbours, carrier.
EDGE_S = 1.2


@dataclass
class Chain:
    """Four hosts in a row. `near` has the link `line0`; each other one has `up0` towards it and `down0` beyond."""

    near: str
    gateway: str
    operator: str
    peer: str
    version: int = 4

    @property
    def host(self) -> str:
        """The peer's address."""
        return "198.18.2.2" if self.version == 4 else "2001:2:0:2::2"


def address(version: int, net: int, host: int) -> str:
    """An address of the benchmarking ranges (RFC 2544, RFC 5180), with its prefix length."""
    return f"198.18.{net}.{host}/24" if version == 4 else f"2001:2:0:{net}::{host}/64"


def join(left: str, left_device: str, right: str, right_device: str, net: int, version: int) -> None:
    """A cable between two hosts."""
    run_ip("-n", left, "link", "add", left_device, "type", "veth", "peer", right_device, "netns", right)
    for name, device, host in ((left, left_device, 1), (right, right_device, 2)):
        if version == 6:
            write(name, f"net/ipv6/conf/{device}/accept_dad", "0")
        run_ip("-n", name, "addr", "add", address(version, net, host), "dev", device)
        run_ip("-n", name, "link", "set", device, "up")


def write(name: str, setting: str, value: str) -> None:
    """A sysctl of a namespace."""
    with entered(name):
        Path("/proc/sys", setting).write_text(value, encoding="ascii")


@contextlib.contextmanager
def chain_of(label: str, version: int = 4) -> Iterator[Chain]:
    """Four hosts whose routes lead from one end to the other."""
    with contextlib.ExitStack() as stack:
        names = [stack.enter_context(namespace(f"{label}-{host}")) for host in ("n", "g", "o", "p")]
        for name in names:
            for scope in ("all", "default") if version == 6 else ():
                write(name, f"net/ipv6/conf/{scope}/disable_ipv6", "0")
        devices = [("line0", "up0"), ("down0", "up0"), ("down0", "up0")]
        for net, ((left, right), (ours, theirs)) in enumerate(zip(itertools.pairwise(names), devices, strict=True)):
            join(left, ours, right, theirs, net, version)
        near, gateway, operator, peer = names
        chain = Chain(near, gateway, operator, peer, version)
        for name, via in (
            (chain.near, (0, 2)),
            (chain.gateway, (1, 2)),
            (chain.operator, (1, 1)),
            (chain.peer, (2, 1)),
        ):
            route(name, address(version, *via).partition("/")[0], version)
        forward(chain.gateway, version, on=True)
        forward(chain.operator, version, on=True)
        yield chain


def route(name: str, via: str, version: int) -> None:
    """Send everything else there."""
    run_ip(f"-{version}", "-n", name, "route", "replace", "default", "via", via)


def forward(name: str, version: int, *, on: bool) -> None:
    """Be a router, or not."""
    write(name, "net/ipv4/ip_forward" if version == 4 else "net/ipv6/conf/all/forwarding", "1" if on else "0")


@dataclass
class Watched:
    """What a window said, and when the fault began and ended, in seconds after its start."""

    values: dict[str, Any]
    began_s: float
    ended_s: float

    def total_s(self) -> float:
        """Every second that the window accounts for."""
        return float(sum(value for name, value in self.values.items() if name in TIMES))

    def outage(self) -> dict[str, Any]:
        """The one outage."""
        (found,) = self.values["outages"]
        assert isinstance(found, dict)
        return found


TIMES = {
    "up_s", "down_local_s", "down_gateway_s", "down_operator_s", "down_peer_s", "down_unlocated_s", "unknown_s",
}  # fmt: skip
Fault = Callable[[Chain, Process], None]


async def watched(chain: Chain, break_it: Fault, mend_it: Fault, **parameters: Any) -> Watched:
    """Watch the line for one window in which something breaks for a while."""
    settings = {"host": chain.host, "window_s": WINDOW_S, "parameters": {"ip_version": chain.version} | parameters}
    program = [sys.executable, "-W", "error", "-c", INSIDE, json.dumps(settings)]
    process = await asyncio.create_subprocess_exec(*command_in(chain.near, program), stdout=PIPE, stderr=PIPE)
    try:
        return await broken_for_a_while(chain, process, break_it, mend_it)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def broken_for_a_while(chain: Chain, process: Process, break_it: Fault, mend_it: Fault) -> Watched:
    """Break it in mid-window, mend it, and take what the process says at the end."""
    assert process.stdout is not None
    started = await process.stdout.readline()
    assert started, (await process.communicate())[1].decode()
    start_s = int(started) / 1e9
    await asyncio.sleep(HEALTHY_S)
    began_s = boottime_s()
    break_it(chain, process)
    await asyncio.sleep(DOWN_S)
    mend_it(chain, process)
    ended_s = boottime_s()
    async with asyncio.timeout(TIME_OUT_S):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return Watched(json.loads(output), began_s - start_s, ended_s - start_s)


def boottime_s() -> float:
    """The clock that the task counts on."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) / 1e9


def unplug_gateway(chain: Chain, _: Process) -> None:
    """No cable from the probe to the gateway."""
    run_ip("-n", chain.gateway, "link", "set", "up0", "down")


def plug_gateway(chain: Chain, _: Process) -> None:
    """Plugged in again."""
    restore(chain.gateway, "up0", address(chain.version, 0, 2), chain.version)


def unplug_operator(chain: Chain, _: Process) -> None:
    """No cable from the gateway to the operator."""
    run_ip("-n", chain.operator, "link", "set", "up0", "down")


def plug_operator(chain: Chain, _: Process) -> None:
    """Plugged in again; the kernel has forgotten what was set up on it."""
    restore(chain.operator, "up0", address(chain.version, 1, 2), chain.version)
    route(chain.operator, address(chain.version, 1, 1).partition("/")[0], chain.version)


def unplug_peer(chain: Chain, _: Process) -> None:
    """No cable from the operator to the peer."""
    run_ip("-n", chain.operator, "link", "set", "down0", "down")


def plug_peer(chain: Chain, _: Process) -> None:
    """Plugged in again."""
    restore(chain.operator, "down0", address(chain.version, 2, 1), chain.version)


def restore(name: str, device: str, own: str, version: int) -> None:
    """Switch a device on. Switched off, it has kept its IPv4 addresses and lost its IPv6 ones."""
    run_ip("-n", name, "link", "set", device, "up")
    if version == 6:
        run_ip("-n", name, "addr", "replace", own, "dev", device)


def kill_gateway(chain: Chain, _: Process) -> None:
    """It neither answers nor forwards; the cable stays plugged in."""
    forward(chain.gateway, chain.version, on=False)
    run_ip("-n", chain.gateway, "addr", "del", address(chain.version, 0, 2), "dev", "up0")


def revive_gateway(chain: Chain, _: Process) -> None:
    """It is there again."""
    run_ip("-n", chain.gateway, "addr", "add", address(chain.version, 0, 2), "dev", "up0")
    forward(chain.gateway, chain.version, on=True)


def freeze(_: Chain, process: Process) -> None:
    """The host stands still."""
    os.kill(process.pid, signal.SIGSTOP)


def thaw(_: Chain, process: Process) -> None:
    """It goes on."""
    os.kill(process.pid, signal.SIGCONT)


def lose_address(chain: Chain, _: Process) -> None:
    """The lease is over."""
    run_ip(f"-{chain.version}", "-n", chain.near, "addr", "flush", "dev", "line0", "scope", "global")


def get_address(chain: Chain, _: Process) -> None:
    """A new lease, of another address."""
    run_ip("-n", chain.near, "addr", "add", address(chain.version, 0, 3), "dev", "line0")
    route(chain.near, address(chain.version, 0, 2).partition("/")[0], chain.version)


def lose_route(chain: Chain, _: Process) -> None:
    """The link keeps its address and its gateway, and has no way beyond."""
    run_ip(f"-{chain.version}", "-n", chain.near, "route", "del", "default")


def get_route(chain: Chain, _: Process) -> None:
    """Advertised again."""
    route(chain.near, address(chain.version, 0, 2).partition("/")[0], chain.version)


FAULTS: dict[str, tuple[Fault, Fault]] = {
    "down_local": (unplug_gateway, plug_gateway),
    "down_gateway": (kill_gateway, revive_gateway),
    "down_operator": (unplug_operator, plug_operator),
    "down_peer": (unplug_peer, plug_peer),
    "down_unlocated": (lose_route, get_route),
    "unknown": (freeze, thaw),
}
CASES = [f"{state}-{version}" for state in FAULTS for version in (4, 6)]
LEASE = "down_local-lease"


@pytest.fixture(scope="module")
def seen() -> dict[str, Watched]:
    """Every line is watched at the same time: almost all of it is waiting."""

    async def watch_all() -> dict[str, Watched]:
        cases = {case: watch(case) for case in CASES} | {
            "silent": watch_silent_gateway(),
            "slow": watch_slowly(),
            LEASE: lose_lease(),
        }
        return dict(zip(cases, await asyncio.gather(*cases.values()), strict=True))

    return asyncio.run(watch_all())


async def watch(case: str) -> Watched:
    """One fault on one IP version."""
    state, _, version = case.partition("-")
    with chain_of(case, int(version)) as chain:
        return await watched(chain, *FAULTS[state])


async def watch_silent_gateway() -> Watched:
    """A gateway that answers no echo, and an operator that goes away; the operator's own host is the witness."""
    with chain_of("silent") as chain:
        write(chain.gateway, "net/ipv4/icmp_echo_ignore_all", "1")
        return await watched(chain, *FAULTS["down_operator"], operator_host=address(4, 1, 2).partition("/")[0])


async def lose_lease() -> Watched:
    """An interface without an address."""
    with chain_of("lease") as chain:
        return await watched(chain, lose_address, get_address)


async def watch_slowly() -> Watched:
    """A packet in three seconds, as on a metered link."""
    with chain_of("slow") as chain:
        return await watched(chain, *FAULTS["down_peer"], interval_s=3, time_out_s=1.5)


@pytest.mark.parametrize("case", [*CASES, LEASE])
def test_each_level_is_told_apart(seen: dict[str, Watched], case: str) -> None:
    """Whatever fails for five seconds, these seconds stand at its level and at no other; all seconds add up."""
    window, state = seen[case], case.partition("-")[0]
    values = window.values
    assert values["window_s"] == pytest.approx(WINDOW_S, abs=0.5)
    assert window.total_s() == pytest.approx(values["window_s"])
    assert values["gateway_can_tell"]
    assert values["operator_can_tell"]
    assert (values["state_at_start"], values["state_at_end"]) == ("up", "up")
    assert values[f"{state}_s"] == pytest.approx(DOWN_S, abs=EDGE_S)
    assert window.total_s() == pytest.approx(values["up_s"] + values[f"{state}_s"])


@pytest.mark.parametrize("case", [case for case in [*CASES, LEASE] if case.startswith("down")])
def test_an_outage_has_its_start_and_its_end(seen: dict[str, Watched], case: str) -> None:
    """Both within about a second of when the cable was pulled and plugged in."""
    window = seen[case]
    outage = window.outage()
    assert outage["state"] == case.partition("-")[0]
    assert outage["offset_s"] == pytest.approx(window.began_s, abs=EDGE_S)
    assert outage["offset_s"] + outage["duration_s"] == pytest.approx(window.ended_s, abs=EDGE_S)
    assert not outage.get("open_at_start")
    assert not outage.get("open_at_end")


@pytest.mark.parametrize("version", [4, 6])
def test_a_frozen_host_is_no_outage(seen: dict[str, Watched], version: int) -> None:
    """SIGSTOP for five seconds is time of which nothing is known, and nothing else."""
    values = seen[f"unknown-{version}"].values
    assert "outages" not in values
    assert values["packets_answered"] == values["packets_sent"]


@pytest.mark.parametrize("version", [4, 6])
def test_what_has_no_way_is_no_packet(seen: dict[str, Watched], version: int) -> None:
    """Without a route only the first one may leave, by IPv4, on the off chance."""
    values = seen[f"down_unlocated-{version}"].values
    assert 0 <= values["packets_sent"] - values["packets_answered"] <= 2


def test_a_gateway_that_answers_no_echo_is_never_blamed(seen: dict[str, Watched]) -> None:
    """Its silence is known from the time in which the peer answers: a dead operator stays the operator's outage."""
    window = seen["silent"]
    assert window.values["down_operator_s"] == pytest.approx(DOWN_S, abs=EDGE_S)
    assert "gateway_can_tell" not in window.values
    assert "gateway_answered" not in window.outage()
    assert window.outage()["operator_answered"] is False


def test_a_slow_watch_looks_closer_in_doubt(seen: dict[str, Watched]) -> None:
    """At a packet in three seconds an outage begins to three seconds and ends to one."""
    window = seen["slow"]
    outage = window.outage()
    assert outage["state"] == "down_peer"
    assert outage["offset_s"] == pytest.approx(window.began_s + 1.5, abs=1.5 + EDGE_S)
    assert outage["offset_s"] + outage["duration_s"] == pytest.approx(window.ended_s, abs=EDGE_S)
    assert window.values["packets_sent"] < WINDOW_S


def test_the_gateway_is_that_of_the_link() -> None:
    """A probe with two lines has a table for each: the main table's gateway is another line's and is not asked."""
    with namespace("tables") as name:
        for device, net in (("line0", 0), ("other0", 1)):
            run_ip("-n", name, "link", "add", device, "type", "veth", "peer", "name", f"{device}-far")
            run_ip("-n", name, "link", "set", f"{device}-far", "up")
            run_ip("-n", name, "addr", "add", address(4, net, 1), "dev", device)
            run_ip("-n", name, "link", "set", device, "up")
        run_ip("-n", name, "route", "add", "default", "via", "198.18.1.2")
        run_ip("-n", name, "rule", "add", "from", "198.18.0.1", "lookup", "100")
        run_ip("-n", name, "route", "add", "default", "via", "198.18.0.2", "table", "100")
        with entered(name):
            assert next_hop("line0", "198.18.0.1", "203.0.113.1") == "198.18.0.2"
            assert next_hop("other0", "198.18.1.1", "203.0.113.1") == "198.18.1.2"
            assert next_hop("other0", "198.18.1.1", "198.18.1.9") is None
            with pytest.raises(OSError, match="no interface"):
                next_hop("wwan7", "198.18.0.1", "203.0.113.1")
