"""`path` over real Linux routers, and over routers that Linux cannot be made into."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from routed_site import Site, chain, measure_in, reflector_in, site
from tun_routers import DESTINATION, DEVICE, SHORT_QUOTE_BYTES, Router, TunRouters, destination

from fleet_controller.lab.namespaces import command_in, entered, namespace
from probe.config import LinkConfig
from probe.errors import MeasurementFailedError
from probe.flows.error_queue import ask_for_errors, next_error
from probe.messages import FailureKind, Operation, Peer
from probe.tasks.path import TASK, PathParameters, PathValues, paths_agree

PORT = 862
LINK = LinkConfig(name="fixed", interface="to-r1")
# Runs as nobody inside the namespace.
AS_NOBODY = """
import asyncio, json, os, sys
import msgspec
from probe.clock import SystemClock
from probe.config import LinkConfig
from probe.links import Link
from probe.messages import Peer
from probe.tasks.base import Context
from probe.tasks.path import PathParameters, measure

os.setgroups([])
os.setgid(65534)
os.setuid(65534)
link = Link(LinkConfig(name="fixed", interface="to-r1"))
found = []
for method, version, host in json.loads(sys.argv[1]):
    context = Context(clock=SystemClock(), time_out_s=60, link=link, peer=Peer(name="p", host=host))
    values = asyncio.run(measure(context, PathParameters(method=method, ip_version=version, probes_per_hop=1)))
    found.append([values.path, os.getuid()])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def straight() -> Iterator[Site]:
    """In a row: probe - r1 - r2 - r3 - peer."""
    with site() as made:
        chain(made, "probe", "r1", "r2", "r3", "peer")
        yield made


@pytest.fixture(scope="module")
def diamond() -> Iterator[Site]:
    """As a diamond: probe - r1 - (a or b) - r2 - peer: r1 shares the load between a and b by the flow."""
    with site() as made:
        made.add("probe", "r1", "a", "b", "r2", "peer")
        ends = ("probe", "r1"), ("r1", "a"), ("r1", "b"), ("a", "r2"), ("b", "r2"), ("r2", "peer")
        for number, (first, second) in enumerate(ends, start=1):
            made.cable(number, first, second)
        made.default("probe", 1, 2)
        made.default("peer", 6, 1)
        for router, forward, back in (("a", 4, 2), ("b", 5, 3)):
            made.route(router, 6, forward, 2)
            made.route(router, 1, back, 1)
        made.route("r2", 1, 4, 1)
        share(made)
        yield made


def share(made: Site) -> None:
    """Let r1 balance."""
    made.ip("r1", "route replace 10.77.6.0/24 nexthop via 10.77.2.2 nexthop via 10.77.3.2")
    hops = "nexthop via 2001:db8:77:2::2 nexthop via 2001:db8:77:3::2"
    made.ip("r1", f"-6 route replace 2001:db8:77:6::/64 {hops}")


@pytest_asyncio.fixture
async def answering(straight: Site) -> AsyncIterator[Site]:
    """The straight site with a reflector at its end."""
    async with reflector_in(straight.name("peer"), PORT):
        yield straight


async def traced(made: Site, host: str, **parameters: Any) -> PathValues:
    """Trace once from the probe."""
    quick = {"interval_s": 0.005, "time_out_s": 0.3} | parameters
    peer = Peer(name="p", host=host, stamp_port=PORT)
    values = await measure_in(made.name("probe"), TASK, PathParameters(**quick), peer, LINK)
    assert isinstance(values, PathValues)
    return values


def host_of(version: int, cable: int) -> str:
    """The peer's address at the end of a cable."""
    return f"10.77.{cable}.2" if version == 4 else f"2001:db8:77:{cable}::2"


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("method", ["udp", "icmp"])
async def test_every_router_is_seen_in_its_place(answering: Site, method: str, version: int) -> None:
    """The clean path: three routers and the peer, each once, each with all its answers and a delay."""
    values = await traced(answering, host_of(version, 4), method=method, ip_version=version)
    assert values.path.split() == [host_of(version, cable) for cable in (1, 2, 3, 4)]
    assert (values.reached, values.ended_by, values.hop_count) == (True, "destination", 4)
    assert [(hop.ttl, hop.sent, hop.answers) for hop in values.hops] == [(ttl, 3, 3) for ttl in (1, 2, 3, 4)]
    assert all(hop.delay_min_s is not None and 0 < hop.delay_min_s < 0.1 for hop in values.hops)
    assert len({hop.offset_s for hop in values.hops}) == 4


@pytest.mark.parametrize("version", [4, 6])
async def test_a_host_on_which_nobody_listens_is_reached(straight: Site, version: int) -> None:
    """What it says, "port unreachable", comes from the destination itself."""
    values = await traced(straight, host_of(version, 4), ip_version=version)
    assert (values.reached, values.hop_count, values.hops_silent) == (True, 4, 0)


@pytest.mark.parametrize("version", [4, 6])
async def test_a_silent_router_is_a_wildcard(answering: Site, version: int) -> None:
    """It forwards and says nothing: the others keep their places, the hash differs, the paths agree."""
    spoken = await traced(answering, host_of(version, 4), ip_version=version)
    with answering.silent("r2"):
        silent = await traced(answering, host_of(version, 4), ip_version=version)
    assert silent.path.split()[1] == "*"
    assert (silent.hops_answered, silent.hops_silent, silent.hop_count) == (3, 1, 4)
    assert silent.path_hash != spoken.path_hash
    assert paths_agree(silent.path, spoken.path)


async def test_a_router_that_limits_its_answers_is_still_seen() -> None:
    """Linux's own limit lets six of ten through at once: fewer answers, the same path, no hop lost."""
    with site() as made:
        chain(made, "probe", "r1", "r2", "peer")
        made.set("r1", "net/ipv4/icmp_ratelimit", "1000")
        async with reflector_in(made.name("peer"), PORT):
            values = await traced(made, host_of(4, 3), probes_per_hop=10)
    assert 0 < values.hops[0].answers < 10
    assert values.hops[1].answers == 10
    assert values.hops_silent == 0


async def test_a_destination_that_is_silent_ends_in_silence(straight: Site) -> None:
    """Nobody at that address and nobody says so: values, with the hops that were seen."""
    with straight.silent("r3"):
        values = await traced(straight, "10.77.4.9", time_out_s=0.2, silent_hops_max=3)
    assert (values.reached, values.hop_count, values.ended_by) == (False, None, "silence")
    assert values.path.split() == [host_of(4, 1), host_of(4, 2)]


@pytest.mark.parametrize(("kind", "word"), [("unreachable", "host"), ("prohibit", "prohibited")])
async def test_a_router_that_refuses_ends_the_path(kind: str, word: str) -> None:
    """!H and !X stand at the hop that said so, and nothing is sent any further."""
    # A site of its own: Linux gives such answers to one host once a second, after a few at first.
    with site() as made:
        chain(made, "probe", "r1", "r2", "peer")
        made.ip("r2", f"route add {kind} 10.99.0.0/24")
        made.ip("r1", "route add 10.99.0.0/24 via 10.77.2.2")
        values = await traced(made, "10.99.0.1")
    assert (values.ended_by, values.reached) == ("unreachable", False)
    assert [hop.unreachable for hop in values.hops] == [None, word]


async def test_a_line_without_a_route_is_a_failure() -> None:
    """Our own kernel takes no probe: there is no path to speak of."""
    with site() as made:
        chain(made, "probe", "r1", "peer")
        made.ip("probe", "-6 route del default")
        with pytest.raises(MeasurementFailedError) as caught:
            await traced(made, "2001:db8:ffff::1", ip_version=6)
    assert caught.value.failure.kind == FailureKind.NETWORK_UNREACHABLE


async def test_a_link_that_goes_away_is_lost() -> None:
    """The device is switched off in mid-trace: `link_lost`, not a path that ends at the first hop."""
    with site() as made:
        chain(made, "probe", "r1", "peer")
        tracing = asyncio.ensure_future(traced(made, host_of(4, 2), interval_s=0.2))
        await asyncio.sleep(0.3)
        made.ip("probe", "link set to-r1 down")
        with pytest.raises(MeasurementFailedError) as caught:
            await tracing
    assert caught.value.failure.kind == FailureKind.LINK_LOST


@pytest.mark.parametrize("version", [4, 6])
async def test_a_gateway_that_is_gone_is_a_failure(straight: Site, version: int) -> None:
    """No probe has left, so no path was measured; as `round_trip` says it, however short the trace is."""
    net, gateway = [("10.98.0.0/24", "10.77.1.77"), ("2001:db8:98::/64", "2001:db8:77:1::77")][version == 6]
    host = ["10.98.0.1", "2001:db8:98::1"][version == 6]
    straight.ip("probe", f"-{version} route add {net} via {gateway}")
    try:
        with pytest.raises(MeasurementFailedError) as caught:
            await traced(straight, host, ip_version=version, time_out_s=0.3, silent_hops_max=2, probes_per_hop=1)
    finally:
        straight.ip("probe", f"-{version} route del {net}")
    assert (caught.value.failure.operation, caught.value.failure.kind) == (
        Operation.RECEIVE,
        FailureKind.HOST_UNREACHABLE,
    )


async def test_no_route_by_ipv4_is_a_failure() -> None:
    """A bound socket sends on the off chance that the destination is a neighbour; nobody answers."""
    with site() as made:
        chain(made, "probe", "r1", "peer")
        made.ip("probe", "route del default")
        with pytest.raises(MeasurementFailedError) as caught:
            await traced(made, "10.98.0.1", time_out_s=0.3, silent_hops_max=2)
    assert (caught.value.failure.operation, caught.value.failure.kind) == (
        Operation.SEND,
        FailureKind.NETWORK_UNREACHABLE,
    )


def naive_hops(made: Site, host: str, ttl: int) -> set[str]:
    """Who answers one TTL when every probe has another port, as the classic traceroute does it."""
    found = set()
    with entered(made.name("probe")):
        for number in range(24):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                ask_for_errors(sock)
                sock.settimeout(1)
                sock.connect((host, 33434 + number))
                sock.sendmsg((b"probe",), ((socket.IPPROTO_IP, socket.IP_TTL, struct.pack("=i", ttl)),))
                with pytest.raises(OSError, match="No route to host"):
                    sock.recv(64)
                error = next_error(sock)
                assert error is not None
                found.add(str(error.reporter))
    return found


@pytest.mark.parametrize("method", ["udp", "icmp"])
@pytest.mark.parametrize("version", [4, 6])
async def test_one_flow_takes_one_branch(diamond: Site, version: int, method: str) -> None:
    """The Paris property: all probes of all runs take the same branch, and the next hop is that branch's."""
    host = host_of(version, 6)
    runs = [await traced(diamond, host, ip_version=version, method=method) for _ in range(3)]
    assert len({values.path for values in runs}) == 1
    branch, after = runs[0].path.split()[1:3]
    # Who enters r2 by cable 4 came through a, by cable 5 through b.
    assert (branch, after) in {(host_of(version, 2), host_of(version, 4)), (host_of(version, 3), host_of(version, 5))}
    assert all(values.one_address_per_hop and values.hop_count == 4 for values in runs)


async def test_ipv6_labels_no_flow(diamond: Site) -> None:
    """Routers may choose by the flow label (RFC 6438), which Linux draws anew for each socket: here it is zero."""
    with entered(diamond.name("r1")), socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x86DD)) as wire:
        wire.bind(("to-probe", 0x86DD))
        wire.setblocking(False)  # noqa: FBT003 - the socket API takes it so
        for _ in range(2):
            await traced(diamond, host_of(6, 6), ip_version=6)
        packets = list(iter(lambda: captured(wire), b""))
    probes = [packet for packet in packets if packet[6] == socket.IPPROTO_UDP]
    assert len(probes) >= 24
    assert {int.from_bytes(packet[1:4], "big") & 0xFFFFF for packet in probes} == {0}
    assert len({packet[8:44] for packet in probes}) == 1


def captured(wire: socket.socket) -> bytes:
    """The next packet that came in; empty when there is none."""
    try:
        packet, (_, _, kind, *_) = wire.recvfrom(2048)
    except BlockingIOError:
        return b""
    return packet if kind == socket.PACKET_HOST else captured(wire)


async def test_a_naive_trace_mixes_the_branches(diamond: Site) -> None:
    """The same path traced with another port per probe shows both routers at one TTL; with flows, one by one."""
    assert naive_hops(diamond, host_of(4, 6), ttl=2) == {host_of(4, 2), host_of(4, 3)}
    branches = set()
    for flow in range(16):
        values = await traced(diamond, host_of(4, 6), flow=flow, probes_per_hop=2)
        assert values.one_address_per_hop
        branches.add(values.path.split()[1])
    assert branches == {host_of(4, 2), host_of(4, 3)}


@pytest.mark.parametrize("version", [4, 6])
async def test_a_reroute_is_a_new_path(diamond: Site, version: int) -> None:
    """Traffic moves from one branch to the other: another hash, and the paths disagree."""
    host, paths = host_of(version, 6), []
    try:
        for cable in (2, 3):
            diamond.ip("r1", "route del 10.77.6.0/24")
            diamond.ip("r1", "-6 route del 2001:db8:77:6::/64")
            diamond.route("r1", 6, cable, 2)
            paths.append(await traced(diamond, host, ip_version=version))
    finally:
        share(diamond)
    assert paths[0].path_hash != paths[1].path_hash
    assert not paths_agree(paths[0].path, paths[1].path)


def test_a_plain_user_can_trace(straight: Site) -> None:
    """As nobody, without any privilege: both methods, both versions of IP."""
    runs = [(method, version, host_of(version, 4)) for method in ("udp", "icmp") for version in (4, 6)]
    program = [sys.executable, "-W", "error", "-c", AS_NOBODY, json.dumps(runs)]
    done = subprocess.run(
        command_in(straight.name("probe"), program), capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    for (_, version, _), (path, uid) in zip(runs, json.loads(done.stdout), strict=True):
        assert uid != os.getuid()
        assert path.split() == [host_of(version, cable) for cable in (1, 2, 3, 4)]


async def through(*routers: Router, **parameters: Any) -> tuple[PathValues, TunRouters]:
    """Trace through routers that do as they are told."""
    row = TunRouters(routers)
    link = LinkConfig(name="fixed", interface=DEVICE)
    fast = {"time_out_s": 0.2, "interval_s": 0.005, "silent_hops_max": 3}
    with namespace("tun") as name, row.behind(name):
        peer = Peer(name="p", host=DESTINATION, stamp_port=PORT)
        values = await measure_in(name, TASK, PathParameters(**{**fast, **parameters}), peer, link)
    assert isinstance(values, PathValues)
    return values, row


R1, R2, R3 = (Router((f"10.90.{number}.1",)) for number in (1, 2, 3))


@pytest.mark.parametrize("method", ["udp", "icmp"])
async def test_all_probes_of_a_trace_look_alike(method: str) -> None:
    """What routers balance by is the same in every packet: addresses, the first four bytes, and UDP's checksum."""
    _, row = await through(R1, R2, R3, destination(), method=method)
    assert len(row.packets) >= 12
    assert len({packet[12:24] for packet in row.packets}) == 1
    assert len({packet[26:28] if method == "udp" else b"" for packet in row.packets}) == 1
    assert len({packet[28:] for packet in row.packets}) == len(row.packets)


async def test_routers_that_quote_little_are_told_apart() -> None:
    """28 bytes quoted hold no number: such routers are asked one by one, and each stands in its place."""
    short = [Router((f"10.90.{number}.1",), SHORT_QUOTE_BYTES) for number in range(1, 5)]
    values, _ = await through(*short, destination(SHORT_QUOTE_BYTES))
    assert values.path.split() == [*(f"10.90.{number}.1" for number in range(1, 5)), DESTINATION]
    assert (values.hop_count, [hop.answers for hop in values.hops]) == (5, [3] * 5)


async def test_one_that_quotes_little_among_others() -> None:
    """The others are known from the first look, and are not asked again."""
    values, _ = await through(R1, Router(("10.90.2.1",), SHORT_QUOTE_BYTES), Router(), R3, destination())
    assert values.path == f"10.90.1.1 10.90.2.1 * 10.90.3.1 {DESTINATION}"
    assert [(hop.sent, hop.answers) for hop in values.hops] == [(3, 3), (3, 3), (3, 0), (3, 3), (3, 3)]


async def test_many_silent_hops_in_a_row_are_passed() -> None:
    """Two of three allowed ones in the middle do not end the trace; four do."""
    values, _ = await through(R1, Router(), Router(), R2, destination())
    assert values.path == f"10.90.1.1 * * 10.90.2.1 {DESTINATION}"
    values, row = await through(R1, Router(), Router(), Router(), Router(), R2, destination())
    assert (values.path, values.ended_by) == ("10.90.1.1", "silence")
    assert max(packet[8] for packet in row.packets) == 4


async def test_a_trace_through_a_desert_is_values() -> None:
    """Nobody answers at all: no hop, nothing reached, no failure."""
    values, _ = await through(Router(), Router(), Router(), Router())
    assert (values.path, values.hops, values.reached, values.ended_by) == ("", (), False, "silence")


async def test_balancing_by_packet_is_told() -> None:
    """Two routers answer one TTL of one flow: both are in the path, and the values say so."""
    values, _ = await through(R1, Router(("10.90.2.2", "10.90.2.1")), R3, destination())
    assert values.path.split()[1] == "10.90.2.1|10.90.2.2"
    assert (values.one_address_per_hop, values.hops[1].addresses) == (False, 2)


async def test_answers_that_come_twice_count_once() -> None:
    """A duplicating path gives three answers to three probes."""
    values, _ = await through(Router(("10.90.1.1",), copies=3), destination())
    assert values.hops[0].answers == 3


async def test_rubbish_is_nobodys_answer() -> None:
    """A report that quotes what was never sent (an earlier trace's, a forger's) makes no hop."""
    values, _ = await through(R1, Router(("10.90.66.6",), rubbish=b"\xff" * 44), R3, destination())
    assert values.path == f"10.90.1.1 * 10.90.3.1 {DESTINATION}"


async def test_late_answers_are_no_answers() -> None:
    """What comes after the time-out is silence, also when the trace is still running."""
    values, _ = await through(Router(("10.90.1.1",), delay_s=0.4), R2, destination(), probes_per_hop=10)
    assert values.path == f"* 10.90.2.1 {DESTINATION}"


async def test_delays_are_those_of_the_hops() -> None:
    """Each router answers after a time of its own, and the delay says which."""
    row = [Router((f"10.90.{number}.1",), delay_s=number * 0.02) for number in range(1, 4)]
    values, _ = await through(*row, destination(delay_s=0.08))
    for number, hop in enumerate(values.hops, start=1):
        assert hop.delay_min_s is not None
        assert number * 0.02 <= hop.delay_min_s < number * 0.02 + 0.015


async def test_the_time_limit_holds() -> None:
    """Thirty silent hops allowed in a row, and one second for all: what was seen until then is given."""
    values, _ = await through(R1, *[Router()] * 9, R2, time_out_s=5.0, limit_s=1.0, silent_hops_max=5)
    assert (values.path, values.ended_by) == ("10.90.1.1", "time")


async def test_the_time_limit_holds_for_routers_that_quote_little() -> None:
    """They are asked one by one until the time is over, and what was seen until then is given."""
    began_s = time.monotonic()
    values, _ = await through(
        destination(SHORT_QUOTE_BYTES), interval_s=0.2, probes_per_hop=10, limit_s=2.3, silent_hops_max=1
    )
    # Ten probes in the first rounds; the time is over after one or two of the ten that would follow.
    assert time.monotonic() - began_s < 3.2
    assert (values.path, values.ended_by) == (DESTINATION, "destination")
    assert 1 <= values.hops[0].sent < 5


async def test_the_highest_ttl_is_kept() -> None:
    """A path longer than allowed ends at the limit."""
    values, row = await through(R1, R2, R3, destination(), hops_max=2)
    assert (values.path, values.ended_by) == ("10.90.1.1 10.90.2.1", "hops_max")
    assert max(packet[8] for packet in row.packets) == 2
