"""`availability` in a running agent: windows without a gap, through a peer that dies, a stop and a kill."""

from __future__ import annotations

import asyncio
import itertools
import signal
import socket
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from agent_rig import AGENT_ID, AgentRig, often
from worded_resolver import resolver

from fleet_controller.lab.services import free_port
from probe.clock import NS_PER_S, SystemClock
from probe.config import LinkConfig
from probe.errors import MeasurementFailedError, NotRunError
from probe.flows.watching import names
from probe.flows.watching.watch import Learned, Watch
from probe.links import Link
from probe.messages import Action, FailureKind, NotRunReason, Operation, Peer, Result, encode
from probe.peer.reflector import Reflector
from probe.schedule import Slots
from probe.tasks.availability import AvailabilityParameters, AvailabilityValues, measure
from probe.tasks.base import Context, Usage
from probe.windows import window_from

INTERVAL_S = 0.5
PERIOD_S = 4.0
TIME_OUT_S = 30.0
KEY = bytes(range(32))
# The agent watches by STAMP, which needs no permission; two losses are an outage, to keep the test short.
WATCH = Action(
    name="watch",
    task="availability",
    peers=("near",),
    parameters={"method": "stamp", "interval_s": INTERVAL_S, "time_out_s": 1.0, "losses": 2},
)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[AgentRig]:
    """A peer, and an agent that has been told to watch it. Without a broker, what it measures stays in its spool."""
    made = AgentRig(tmp_path / "rig")
    made.state_dir.mkdir(parents=True)
    told = encode(made.instruction(often(WATCH, period_s=PERIOD_S)))
    (made.state_dir / "instruction.json").write_bytes(told)
    try:
        made.peer.start()
        made.agent.start()
        yield made
    finally:
        made.stop()


def results_of(rig: AgentRig) -> list[Result]:
    """Everything in the spool that is finished, in order of time."""
    spool = rig.state_dir / "spool.db"
    if not spool.exists():
        return []
    with closing(sqlite3.connect(f"file:{spool}?mode=ro", uri=True, timeout=10)) as connection:
        rows = connection.execute("SELECT body FROM results ORDER BY start_unix_ns").fetchall()
    return [msgspec.json.decode(body, type=Result) for (body,) in rows]


def wait_for(rig: AgentRig, wanted: Callable[[list[Result]], bool]) -> list[Result]:
    """The results, once they are as wanted."""
    deadline = time.monotonic() + TIME_OUT_S
    while not wanted(found := results_of(rig)):
        assert time.monotonic() < deadline, f"{found}\n{rig.log()}"
        time.sleep(0.2)
    return found


def values_of(result: Result) -> dict[str, Any]:
    """What it saw."""
    assert result.values is not None, result.not_run
    return result.values


def end_s(result: Result) -> float:
    """When a window ended."""
    return result.start_unix_ns / NS_PER_S + float(values_of(result)["window_s"])


def outages_of(windows: list[Result]) -> list[tuple[float, float]]:
    """When the peer was away, from when until when: what the end of a window cut in two is joined again.

    This is what whoever reads the database has to do.
    """
    joined: list[tuple[float, float]] = []
    for window in windows:
        for sample in values_of(window).get("outages", ()):
            start_s = window.start_unix_ns / NS_PER_S + sample["offset_s"]
            if joined and sample.get("open_at_start") and start_s - joined[-1][1] < INTERVAL_S:
                joined[-1] = joined[-1][0], start_s + sample["duration_s"]
            else:
                joined.append((start_s, start_s + sample["duration_s"]))
    return joined


def test_windows_follow_one_another(rig: AgentRig) -> None:
    """Each begins where the one before ended, at once after the start; an outage over two of them is one outage.

    The peer dies shortly before a window ends and comes back in the next one: port unreachable says that it is the
    peer's outage, and where the two windows meet nothing is lost.
    """
    started_s = time.time()
    slots = Slots(AGENT_ID, "often", "fixed0", round(PERIOD_S * NS_PER_S))
    bound_s = window_from(time.time_ns() + 2 * NS_PER_S, slots.period_ns, slots.phase_ns()).end_unix_ns / NS_PER_S
    time.sleep(bound_s - 1.2 - time.time())
    died_s = time.time()
    rig.peer.kill()
    time.sleep(2.4)
    rig.peer.start()
    back_s = time.time()
    windows = wait_for(rig, lambda found: bool(found) and end_s(found[-1]) > back_s + 1)
    assert windows[0].start_unix_ns / NS_PER_S - started_s < 3
    for one, following in itertools.pairwise(windows):
        assert following.start_unix_ns / NS_PER_S == pytest.approx(end_s(one), abs=INTERVAL_S)
        assert following.cycle_number == (one.cycle_number or 0) + 1
    ((start_s, stop_s),) = outages_of(windows)
    assert start_s == pytest.approx(died_s, abs=1)
    assert stop_s == pytest.approx(back_s, abs=1)
    states = {sample["state"] for window in windows for sample in values_of(window).get("outages", ())}
    assert states == {"down_peer"}
    assert sum("outages" in values_of(window) for window in windows) == 2


def test_a_stop_tells_what_was_seen_and_a_kill_that_it_was_cut_off(rig: AgentRig) -> None:
    """A window that is ended by SIGTERM has values up to then; one that a power cut ended is `interrupted`.

    After either the agent watches again at once.
    """
    # A first window lasts for half a period at least, and the agent takes a moment to start.
    time.sleep(PERIOD_S / 2)
    stopped_s = time.time()
    rig.end_with(signal.SIGTERM)
    rig.agent.start()
    time.sleep(PERIOD_S / 2)
    killed_s = time.time()
    rig.agent.kill()
    rig.agent.start()
    wait_for(rig, lambda found: len(found) >= 2)
    time.sleep(PERIOD_S / 2)
    rig.end_with(signal.SIGTERM)
    stopped, cut_off, after = results_of(rig)
    assert stopped.start_unix_ns / NS_PER_S < stopped_s
    assert end_s(stopped) == pytest.approx(stopped_s, abs=1)
    assert cut_off.not_run is not None
    assert cut_off.not_run.reason is NotRunReason.INTERRUPTED
    assert stopped_s < cut_off.start_unix_ns / NS_PER_S < killed_s < after.start_unix_ns / NS_PER_S < killed_s + 3
    assert values_of(after)["packets_answered"] > 1


class NoWallClock(SystemClock):
    """A clock by which nobody may time anything."""

    def wall_ns(self) -> int:
        """As probe.clock.Clock."""
        raise AssertionError("a step of the wall clock would count")


async def test_the_wall_clock_does_not_matter() -> None:
    """A window, its outage and its end are timed without it; a peer that never listened is the peer's outage."""
    parameters = msgspec.convert(WATCH.parameters, AvailabilityParameters)
    context = Context(
        clock=NoWallClock(),
        time_out_s=20,
        link=Link(LinkConfig(name="fixed0", interface="lo")),
        peer=Peer(name="near", host="127.0.0.1", stamp_port=free_port(kind=socket.SOCK_DGRAM)),
        window_s=2.2,
    )
    values = await measure(context, parameters)
    assert values.window_s == pytest.approx(2.2, abs=0.5)
    assert values.down_peer_s == values.window_s
    assert (values.packets_sent, values.packets_answered) == (5, 0)
    (outage,) = values.outages
    assert (outage.open_at_start, outage.open_at_end, outage.packets_lost) == (True, True, 5)


async def watched(
    resolvers: tuple[str, ...],
    host: str = "peer.test",
    learned: Learned | None = None,
    stamp_port: int | None = None,
    **settings: Any,
) -> AvailabilityValues:
    """A short window; nobody listens at the peer, unless its port is given."""
    context = Context(
        clock=SystemClock(),
        time_out_s=20,
        link=Link(LinkConfig(name="fixed0", interface="lo", source_address_v6="::1", resolvers=resolvers)),
        peer=Peer(name="near", host=host, stamp_port=stamp_port or free_port(kind=socket.SOCK_DGRAM)),
        window_s=1.2,
        memory={} if learned is None else {"learned by IPv4": learned},
    )
    return await measure(context, msgspec.convert(WATCH.parameters | settings, AvailabilityParameters))


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asks for names again after a fraction of the ten seconds."""
    monkeypatch.setattr(names, "_RESOLVE_AGAIN_S", 0.2)


@pytest.mark.usefixtures("_impatient")
async def test_no_such_name_does_not_end_the_watching() -> None:
    """A router without uplink says NXDOMAIN of every name: the window goes on, and finds the peer later."""
    async with resolver(peer=["NXDOMAIN", "NXDOMAIN", "127.0.0.1"]) as resolvers:
        values = await watched(resolvers)
    # That it is the peer's own refusal tells that its address was found; before, nobody could be asked.
    assert values.down_peer_s > 0
    assert values.window_s == pytest.approx(1.2, abs=0.5)


@pytest.mark.usefixtures("_impatient")
async def test_a_peer_that_never_had_a_name_is_a_failure_at_the_windows_end() -> None:
    """Told so at every look-up: resolve/name_not_found, once the window is over."""
    started_s = time.monotonic()
    async with resolver(peer=["NXDOMAIN"]) as resolvers:
        with pytest.raises(MeasurementFailedError) as caught:
            await watched(resolvers)
    assert (caught.value.failure.operation, caught.value.failure.kind) == (
        Operation.RESOLVE,
        FailureKind.NAME_NOT_FOUND,
    )
    assert time.monotonic() - started_s > 1.1


@pytest.mark.usefixtures("_impatient")
async def test_no_such_name_and_then_silence_is_a_line_that_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every look-up said that there is no such peer: what the window saw is told."""
    monkeypatch.setattr(names, "RESOLVE_TIME_OUT_S", 0.3)
    async with resolver(peer=["NXDOMAIN", None]) as resolvers:
        values = await watched(resolvers)
    assert (values.packets_answered, values.up_s) == (0, 0)
    assert values.state_at_end.is_down


async def test_what_could_not_be_sent_is_no_packet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a peer whose address nobody knows, and of one that no route leads to: there is no loss without a packet."""
    monkeypatch.setattr(names, "RESOLVE_TIME_OUT_S", 0.3)
    async with resolver(peer=[None]) as resolvers:
        nameless = await watched(resolvers)
        unroutable = await watched(resolvers, "2001:db8::1", ip_version=6)
    for values in (nameless, unroutable):
        assert (values.packets_sent, values.packets_answered) == (0, 0)
        assert values.down_unlocated_s == values.window_s


async def test_an_answer_from_the_address_before_still_counts() -> None:
    """The peer's name has two addresses, and the resolver gives the other one just after the first packet."""
    async with AsyncExitStack() as stack:
        reflectors = [Reflector(), Reflector()]
        for one, host in zip(reflectors, ("127.0.0.1", "127.0.0.2"), strict=True):
            await one.start(host, reflectors[0].port if one is reflectors[1] else 0)
            stack.push_async_callback(one.stop)
        resolvers = await stack.enter_async_context(resolver(peer=["127.0.0.2"]))
        learned = Learned(addresses={"peer.test": "127.0.0.1"})
        values = await watched(resolvers, learned=learned, stamp_port=reflectors[0].port)
    assert learned.addresses == {"peer.test": "127.0.0.2"}
    assert (values.packets_answered, values.up_s) == (values.packets_sent, values.window_s)


@pytest.mark.usefixtures("_impatient")
async def test_a_witness_without_an_address_does_not_end_the_watching() -> None:
    """Neither at the start nor when it is asked for again."""
    async with resolver(operator=["NXDOMAIN"]) as resolvers:
        values = await watched(resolvers, host="127.0.0.1", operator_host="operator.test")
    assert values.down_peer_s == values.window_s


async def test_watching_begins_before_the_witness_has_an_address() -> None:
    """Its resolver is silent for five seconds: the peer needs none, and every second of the window is accounted for."""
    started_s = time.monotonic()
    async with resolver(operator=[None]) as resolvers:
        values = await watched(resolvers, host="127.0.0.1", operator_host="operator.test")
    assert time.monotonic() - started_s < names.RESOLVE_TIME_OUT_S
    assert (values.down_peer_s, values.unknown_s) == (values.window_s, 0)
    assert values.packets_sent >= 2


def test_a_new_witness_is_not_taken_for_the_one_before() -> None:
    """That the first router used to answer says nothing of the operator's own host; that this one did, does."""
    learned = Learned(hop=2, answers={"gateway": True, "operator": True})

    def watch() -> Watch:
        link, rules = Link(LinkConfig(name="fixed0", interface="lo")), AvailabilityParameters().rules()
        return Watch(link, 4, rules, interval_s=1, time_out_s=3, learned=learned, usage=Usage())

    watch().set_operator("192.0.2.1")
    assert learned.answers == {"gateway": True}
    learned.answers["operator"] = True
    watch().set_operator("192.0.2.1")
    assert learned.answers == {"gateway": True, "operator": True}


async def test_a_witness_that_is_no_longer_named_is_forgotten() -> None:
    """Once the instruction names no host of the operator's, that it used to answer says nothing of any router."""
    learned = Learned(hop=2, operator="192.0.2.1", answers={"operator": True})
    async with resolver() as resolvers:
        values = await watched(resolvers, "192.0.2.7", learned)  # nobody
    assert (values.up_s, values.down_operator_s) == (0, 0)
    assert (learned.operator, values.operator_can_tell) == (None, False)


@asynccontextmanager
async def sealed_reflector() -> AsyncIterator[int]:
    """A peer that answers authenticated STAMP alone; gives its port."""
    one = Reflector(keys=(KEY,))
    await one.start("127.0.0.1", 0)
    try:
        yield one.port
    finally:
        await one.stop()


async def watched_with(key_file: str, port: int) -> AvailabilityValues:
    """A short window at a peer that wants a key."""
    context = Context(
        clock=SystemClock(),
        time_out_s=20,
        link=Link(LinkConfig(name="fixed0", interface="lo")),
        peer=Peer(name="near", host="127.0.0.1", stamp_port=port, stamp_key="fleet"),
        window_s=1.2,
        stamp_keys={"fleet": key_file},
    )
    return await measure(context, msgspec.convert(WATCH.parameters, AvailabilityParameters))


async def test_a_peer_that_wants_a_key_is_watched_with_it(tmp_path: Path) -> None:
    """It is up with the key, and down for whoever has another one."""
    files = {KEY: tmp_path / "right.key", bytes(32): tmp_path / "wrong.key"}
    for key, file in files.items():
        file.write_text(key.hex())
        file.chmod(0o600)
    async with sealed_reflector() as port:
        right, wrong = await asyncio.gather(*(watched_with(str(file), port) for file in files.values()))
    assert (right.up_s, right.packets_answered) == (right.window_s, right.packets_sent)
    assert (wrong.up_s, wrong.packets_answered) == (0, 0)


async def test_without_its_key_a_peer_is_not_watched() -> None:
    """It would be down for ever."""
    with pytest.raises(NotRunError) as caught:
        await watched_with("/nowhere/stamp.key", 862)
    assert caught.value.not_run.reason is NotRunReason.TOOL_MISSING


async def test_a_peer_that_had_an_address_keeps_it() -> None:
    """Asked for again, its name is told not to exist, or cannot even be asked for: it is watched as before."""
    async with resolver(peer=["NXDOMAIN"]) as resolvers:
        for host in ("peer.test", "a" * 64 + ".test"):
            values = await watched(resolvers, host, Learned(addresses={host: "127.0.0.1"}))
            assert values.down_peer_s == values.window_s


def test_a_witness_of_the_other_ip_version_is_refused() -> None:
    """It could never be asked, and nothing else would tell of it."""
    for good in ("192.0.2.1", "192.0.2.1.test"):
        AvailabilityParameters(operator_host=good)
    with pytest.raises(msgspec.ValidationError, match=r"operator_host: 192\.0\.2\.1 is an IPv4 address"):
        msgspec.convert({"operator_host": "192.0.2.1", "ip_version": 6}, AvailabilityParameters)
