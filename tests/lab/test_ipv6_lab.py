"""`ipv6` over a line whose IPv6 is broken in one way at a time: the clean line first, then each fault."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager as Fault
from typing import Any

import pytest
import pytest_asyncio
from rejecting_router import rejecting
from routed_site import Site, chain, measure_in, reflector_in, site
from worded_resolver import serving as resolving

from fleet_controller.lab.namespaces import command_in, entered
from fleet_controller.lab.site import PEER_NAME
from fleet_controller.lab.site import Site as LabSite
from probe.config import LinkConfig
from probe.errors import MeasurementFailedError, NotRunError
from probe.messages import FailureKind, NotRunReason, Operation, Peer
from probe.tasks.ipv6 import TASK, Ipv6Parameters, Ipv6Values

PORT, HTTP_PORT = 862, 80
V4, V6 = "10.77.3.2", "2001:db8:77:3::2"
NEAR_V6 = "2001:db8:77:1::1/64"
LINK = LinkConfig(name="fixed", interface="to-r1", resolvers=(V4, V6))
# Each try at a resolver that is silent takes its time.
LINK_V4_RESOLVER = LinkConfig(name="fixed", interface="to-r1", resolvers=(V4,))
NAMES = (
    "--no-daemon", "--no-hosts", "--no-resolv", "--user=root", "--pid-file=", "--port=53", "--bind-dynamic",
    f"--host-record=dual.test,{V4},{V6}", f"--host-record=four.test,{V4}", f"--host-record=six.test,{V6}",
    "--local=/test/",
)  # fmt: skip


@pytest.fixture(scope="module")
def made() -> Iterator[Site]:
    """In a row: probe - r1 - r2 - peer."""
    with site() as new:
        chain(new, "probe", "r1", "r2", "peer")
        yield new


@pytest_asyncio.fixture
async def line(made: Site) -> AsyncIterator[Site]:
    """The same with a peer that answers STAMP, TCP and DNS by both families."""
    async with serving(made):
        yield made


@contextlib.asynccontextmanager
async def serving(made: Site) -> AsyncIterator[None]:
    """Reflectors, a web port that closes what it accepts, a resolver."""
    peer = made.name("peer")
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(reflector_in(peer, PORT))
        with entered(peer):
            server = await asyncio.start_server(lambda _, writer: writer.close(), ["0.0.0.0", "::"], HTTP_PORT)  # noqa: S104
        stack.push_async_callback(server.wait_closed)
        stack.callback(server.close)
        dns = await asyncio.create_subprocess_exec(*command_in(peer, ["dnsmasq", *NAMES]), stderr=-1)
        assert dns.stderr is not None
        while b"started" not in await asyncio.wait_for(dns.stderr.readline(), 5):
            pass
        try:
            yield
        finally:
            dns.terminate()
            await dns.wait()


async def measured(made: Site, host: str = "dual.test", link: LinkConfig = LINK, **parameters: Any) -> Ipv6Values:
    """Measure once from the probe, quickly."""
    quick = {"packets": 4, "interval_s": 0.04, "time_out_s": 0.4} | parameters
    peer = Peer(name="p", host=host, stamp_port=PORT, http_port=HTTP_PORT)
    values = await measure_in(made.name("probe"), TASK, Ipv6Parameters(**quick), peer, link)
    assert isinstance(values, Ipv6Values)
    return values


@contextlib.contextmanager
def undone(made: Site, place: str, do: str, undo: str) -> Iterator[None]:
    """Something wrong at one place for the length of a block."""
    made.ip(place, do)
    try:
        yield
    finally:
        made.ip(place, undo)


@contextlib.contextmanager
def small_link(made: Site, mtu_bytes: int) -> Iterator[None]:
    """The cable between r1 and r2 carries less than the others."""
    try:
        for place, device in (("r1", "to-r2"), ("r2", "to-r1")):
            made.ip(place, f"link set {device} mtu {mtu_bytes}")
        yield
    finally:
        for place, device in (("r1", "to-r2"), ("r2", "to-r1")):
            made.ip(place, f"link set {device} mtu 1500")


@pytest.mark.parametrize("method", ["stamp", "icmp"])
async def test_a_healthy_line(line: Site, method: str) -> None:
    """The clean path: both families work, every step of them is there, and the difference is next to nothing."""
    values = await measured(line, method=method)
    assert (values.state, values.state_v4, values.winner) == ("works", "works", "ipv6")
    assert (values.address_kind, values.address_origin, values.default_route) == ("global", "static", True)
    assert (values.packets_received_v6, values.packets_received_v4, values.pairs) == (4, 4, 4)
    assert (values.path_mtu_v6_bytes, values.path_mtu_v4_bytes) == (1500, 1500)
    assert (values.mtu_black_hole_v6, values.mtu_black_hole_v4) == (False, False)
    # MTU less the headers of IP and TCP and the time stamps.
    assert (values.segment_v6_bytes, values.segment_v4_bytes) == (1500 - 72, 1500 - 52)
    assert values.resolver_v6_answers is True
    for taken_s in (values.dns_v6_s, values.dns_v4_s, values.connect_v6_s, values.connect_v4_s):
        assert taken_s is not None
        assert 0 < taken_s < 0.2
    assert values.delay_difference_s is not None
    assert abs(values.delay_difference_s) < 0.005
    assert (values.error_v6, values.error_v4) == (None, None)


def no_address(made: Site) -> Fault[None]:
    """No router advertisement came."""
    return undone(made, "probe", f"addr del {NEAR_V6} dev to-r1", f"addr add {NEAR_V6} dev to-r1 nodad")


def no_route(made: Site) -> Fault[None]:
    """An address and nowhere to go."""
    way = "-6 route {} default via 2001:db8:77:1::2"
    return undone(made, "probe", way.format("del"), way.format("add"))


def dropped(made: Site) -> Fault[None]:
    """The operator loses every packet of it."""
    way = "2001:db8:77:3::/64"
    return undone(made, "r1", f"-6 route replace blackhole {way}", f"-6 route replace {way} via 2001:db8:77:2::2")


def refused(made: Site) -> Fault[None]:
    """A router says that there is no way."""
    way = "2001:db8:77:3::/64"
    return undone(made, "r1", f"-6 route replace prohibit {way}", f"-6 route replace {way} via 2001:db8:77:2::2")


@pytest.mark.parametrize(
    ("fault", "state", "error"),
    [
        (no_address, "no_address", None),
        (no_route, "no_route", None),
        (dropped, "unreachable", "timed_out"),
        (refused, "unreachable", "permission_denied"),
    ],
)
async def test_broken_ipv6_is_values(
    line: Site, fault: Callable[[Site], Fault[None]], state: str, error: str | None
) -> None:
    """Each fault has its state; IPv4 beside it is measured all the same, and wins."""
    with fault(line):
        values = await measured(line, link=LINK_V4_RESOLVER if fault is dropped else LINK, mtu=False)
    line.default("probe", 1, 2)
    assert (values.state, values.error_v6) == (state, error)
    assert (values.state_v4, values.packets_received_v4, values.winner) == ("works", 4, "ipv4")
    assert (values.packets_received_v6, values.delay_median_v6_s, values.delay_difference_s) == (0, None, None)
    assert values.delay_median_v4_s is not None
    assert values.address_kind == ("none" if state == "no_address" else "global")
    assert values.default_route == (state not in {"no_address", "no_route"})
    assert values.resolver_v6_answers is (None if fault is dropped else False)


@contextlib.contextmanager
def firewall(made: Site, host: str) -> Iterator[None]:
    """At r1: forwards nothing to this host, and refuses in its name."""
    six = ":" in host
    net, via = ("2001:db8:77:3::/64", "2001:db8:77:2::2") if six else ("10.77.3.0/24", "10.77.2.2")
    way = f"{'-6 ' if six else ''}route replace"
    drop = undone(made, "r1", f"{way} blackhole {net}", f"{way} {net} via {via}")
    with drop, rejecting(made.name("r1"), "to-probe", host):
        yield


@pytest.mark.parametrize("method", ["stamp", "icmp"])
async def test_a_firewall_that_refuses_is_not_the_host(line: Site, method: str) -> None:
    """It says of every packet what a host says of a closed port; none of them got there, and none may pass for it."""
    with firewall(line, V6):
        values = await measured(line, V4, host_v6=V6, method=method, mtu=False)
    assert (values.state, values.error_v6, values.packets_received_v6) == ("unreachable", "refused", 0)
    assert (values.state_v4, values.error_v4, values.winner) == ("works", None, "ipv4")


async def test_firewalls_before_both_families_are_a_failure(line: Site) -> None:
    """Nothing of the host's own came back by either: nothing was learned about IPv6."""
    with firewall(line, V6), firewall(line, V4), pytest.raises(MeasurementFailedError) as caught:
        await measured(line, V4, host_v6=V6, mtu=False)
    assert (caught.value.failure.operation, caught.value.failure.kind) == (Operation.RECEIVE, FailureKind.REFUSED)


async def test_an_address_that_goes_away_during_the_look_ups_is_values(line: Site) -> None:
    """Names take half a second, and the router's lifetime ends meanwhile: IPv4 is measured all the same."""
    words: dict[str, list[str | None]] = {"dual.test": [V4], "AAAA dual.test": [V6]}
    async with contextlib.AsyncExitStack() as stack:
        with entered(line.name("peer")):
            slow = await stack.enter_async_context(resolving(words, V4, wait_s=0.5))
        link = LinkConfig(name="fixed", interface="to-r1", resolvers=(slow,))
        measuring = asyncio.ensure_future(measured(line, link=link, mtu=False))
        await asyncio.sleep(0.2)
        with no_address(line):
            values = await measuring
    line.default("probe", 1, 2)
    assert (values.state, values.default_route, values.packets_sent_v6) == ("no_address", False, 0)
    assert (values.state_v4, values.packets_received_v4, values.winner) == ("works", 4, "ipv4")


@contextlib.contextmanager
def black_hole(made: Site) -> Iterator[None]:
    """Sizes are searched for through this for some seconds."""
    rule = "-6 rule {} pref 10 iif lo ipproto ipv6-icmp blackhole"
    with small_link(made, 1428), undone(made, "r1", rule.format("add"), rule.format("del")):
        yield


async def test_an_address_that_goes_away_during_the_search_for_the_mtu_is_values(line: Site) -> None:
    """What was measured before stands; what the line has at the end is told, too."""
    with black_hole(line):
        measuring = asyncio.ensure_future(measured(line))
        await asyncio.sleep(1.0)
        with no_address(line):
            values = await measuring
    line.default("probe", 1, 2)
    assert (values.state, values.packets_received_v6, values.default_route) == ("works", 4, False)
    assert (values.state_v4, values.path_mtu_v4_bytes) == ("works", 1428)


@pytest.mark.parametrize("host", ["dual.test", V4])
async def test_a_link_that_goes_away_is_lost(host: str) -> None:
    """During the look-ups, as nobody is at the resolver's address, or during the search: under way, it is a failure."""
    link = LinkConfig(name="fixed", interface="to-r1", resolvers=("10.77.3.9",))
    with site() as made:
        chain(made, "probe", "r1", "r2", "peer")
        async with reflector_in(made.name("peer"), PORT):
            with black_hole(made):
                parameters = {} if host == "dual.test" else {"host_v6": V6}
                measuring = asyncio.ensure_future(measured(made, host, link, **parameters))
                await asyncio.sleep(1.0)
                made.ip("probe", "link set to-r1 down")
                with pytest.raises(MeasurementFailedError) as caught:
                    await measuring
    assert (caught.value.failure.operation, caught.value.failure.kind) == (Operation.RECEIVE, FailureKind.LINK_LOST)


async def test_the_line_works_again_after_the_faults(line: Site) -> None:
    """The table above left nothing behind: what it saw was the fault and nothing else."""
    assert (await measured(line, mtu=False)).state == "works"


@pytest.mark.parametrize(
    ("host", "parameters", "state", "state_v4"),
    [
        ("four.test", {}, "no_record", "works"),
        ("six.test", {}, "works", "no_record"),
        ("dual.test", {"host_v6": "refused.example"}, "no_dns", "works"),
        (V4, {"host_v6": V6}, "works", "works"),
    ],
)
async def test_names(line: Site, host: str, parameters: dict[str, Any], state: str, state_v4: str) -> None:
    """A host without a record of a family, a resolver that refuses to look, and hosts given as addresses."""
    values = await measured(
        line, host, LinkConfig(name="l", interface="to-r1", resolvers=(V4,)), mtu=False, **parameters
    )
    assert (values.state, values.state_v4) == (state, state_v4)
    assert (values.dns_v6_s is None) == (state == "no_dns" or host == V4)


async def test_a_line_without_ipv4(line: Site) -> None:
    """IPv6 alone works, and says what is missing."""
    with undone(line, "probe", "addr del 10.77.1.1/24 dev to-r1", "addr add 10.77.1.1/24 dev to-r1"):
        values = await measured(line, mtu=False)
    line.default("probe", 1, 2)
    assert (values.state, values.state_v4, values.winner) == ("works", "no_address", "ipv6")


async def test_unique_local_addresses_alone_are_told(line: Site) -> None:
    """A router at home hands out fd00::/8 and nothing else: an address, and no answer from the Internet."""
    with (
        no_address(line),
        undone(line, "probe", "addr add fd00:77::1/64 dev to-r1 nodad", "addr del fd00:77::1/64 dev to-r1"),
    ):
        line.ip("probe", "-6 route replace default dev to-r1")
        values = await measured(line, link=LINK_V4_RESOLVER, mtu=False)
    line.default("probe", 1, 2)
    assert (values.state, values.address_kind, values.addresses_global) == ("unreachable", "unique_local", 0)


async def test_a_global_address_is_preferred(line: Site) -> None:
    """Unique local, deprecated and global on one interface: packets leave from the one that the Internet answers."""
    extra = ("fd00:77::1/64", "2001:db8:77:1::d/64 preferred_lft 0")
    try:
        for address in extra:
            line.ip("probe", f"addr add {address} dev to-r1 nodad")
        values = await measured(line, mtu=False)
    finally:
        for address in extra:
            line.ip("probe", f"addr del {address.split()[0]} dev to-r1")
    assert (values.state, values.address_kind, values.addresses_global) == ("works", "global", 1)


@pytest.mark.parametrize("method", ["stamp", "icmp"])
async def test_a_smaller_mtu_that_is_reported_is_no_black_hole(line: Site, method: str) -> None:
    """A tunnel of 1400 bytes whose router says "too big": both families work, at that size to the byte."""
    with small_link(line, 1400):
        values = await measured(line, method=method)
    assert (values.state, values.state_v4) == ("works", "works")
    assert (values.path_mtu_v6_bytes, values.path_mtu_v4_bytes) == (1400, 1400)


async def test_an_mtu_black_hole_is_found(line: Site) -> None:
    """The same tunnel, and nobody says "too big" by IPv6: small packets come back, large ones vanish."""
    with black_hole(line):
        values = await measured(line)
    assert (values.state, values.mtu_black_hole_v6, values.path_mtu_v6_bytes) == ("mtu_black_hole", True, 1428)
    assert (values.state_v4, values.mtu_black_hole_v4, values.path_mtu_v4_bytes) == ("works", False, 1428)
    assert values.packets_received_v6 == 4


async def test_a_dead_peer_is_a_failure(made: Site) -> None:
    """Nobody at that address by either family: nothing was learned about IPv6."""
    with pytest.raises(MeasurementFailedError) as caught:
        await measured(made, "10.77.3.9", host_v6="2001:db8:77:3::9")
    assert caught.value.failure.operation == Operation.RECEIVE
    assert caught.value.failure.kind in {FailureKind.TIMED_OUT, FailureKind.HOST_UNREACHABLE}


async def test_a_dead_resolver_is_a_failure(made: Site) -> None:
    """No name, no address, no packet: the name is what failed."""
    with pytest.raises(MeasurementFailedError) as caught:
        await measured(made, "dual.test")
    assert caught.value.failure.operation == Operation.RESOLVE


async def test_what_cannot_be_measured_is_not_run(made: Site) -> None:
    """A link that is down, and a peer known by an IPv4 address alone, say nothing of IPv6."""
    with pytest.raises(NotRunError) as caught:
        await measured(made, V4)
    assert caught.value.not_run.reason == NotRunReason.BAD_PARAMETERS
    with pytest.raises(NotRunError) as caught:
        await measure_in(
            made.name("probe"), TASK, Ipv6Parameters(), Peer(name="p", host=V6), LinkConfig(name="l", interface="gone")
        )
    assert caught.value.not_run.reason == NotRunReason.LINK_DOWN


@pytest.mark.parametrize(
    ("profile", "state", "state_v4"), [("ipv6_broken", "unreachable", "works"), ("v6_only", "works", "no_address")]
)
def test_the_labs_own_lines(profile: str, state: str, state_v4: str) -> None:
    """The named profiles, by the probe's own command: each is told for what it is."""
    parameters = {"host": PEER_NAME, "packets": 4, "interval_s": 0.04, "time_out_s": 0.4, "mtu": False}
    with LabSite(profile) as lab:
        result = lab.run("ipv6", parameters)
    assert result.values is not None, (result.failure, result.not_run)
    assert (result.values["state"], result.values["state_v4"]) == (state, state_v4)
