"""From the fleet file to instructions: what each agent is told, and when that is something new."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_controller.fleet import load as fleet_module
from fleet_controller.fleet.load import (
    Fleet,
    FleetAction,
    FleetLink,
    FleetPeer,
    FleetProbe,
    FleetSchedule,
    FleetSuppression,
    load_fleet,
)
from fleet_controller.fleet.parts import Collector
from fleet_controller.fleet.reader import read_fleet
from fleet_controller.fleet.yaml_lines import parse_lined
from fleet_controller.instruct import (
    Change,
    InstructionTooLongError,
    compile_instruction,
    instructions_for,
    plan_changes,
    retained_revisions,
    revision_of,
    send_changes,
)
from probe import instruction as agent_side
from probe.messages import Instruction, encode, topic
from probe.tasks import TASKS

EXAMPLE = Path(fleet_module.__file__).parents[1] / "examples" / "fleet.yaml"
PING = FleetAction(task="round_trip", peers=("near",))
FIXED = FleetLink(operator="vnpt", access="fixed")
MOBILE = FleetLink(operator="viettel", access="mobile", byte_budget_per_month=10**10)


def fleet_of(**changes: Any) -> Fleet:
    """A fleet of one probe with two links, one schedule and two peers."""
    fleet = Fleet(
        peers={
            "near": FleetPeer(host="192.0.2.1", scope="domestic"),
            "far": FleetPeer(host="192.0.2.2", scope="international", stamp_port=5000, tls=True),
        },
        schedules={"pulse": FleetSchedule(period_s=60, actions=(PING,))},
        probes={"hn-01": FleetProbe(province="ha_noi", links={"mobile": MOBILE, "fixed": FIXED})},
    )
    return msgspec.structs.replace(fleet, **changes)


def parse(text: str) -> Fleet:
    """A fleet out of YAML without mistakes."""
    out = Collector()
    root = parse_lined(text, out.mistakes)
    assert root is not None
    fleet = read_fleet(root, out, TASKS)
    assert out.mistakes == []
    return fleet


def shuffled(value: Any, chance: random.Random) -> Any:
    """The same data with the keys of every mapping in another order; lists keep theirs."""
    if isinstance(value, dict):
        keys = list(value)
        chance.shuffle(keys)
        return {key: shuffled(value[key], chance) for key in keys}
    if isinstance(value, list):
        return [shuffled(item, chance) for item in value]
    return value


def test_an_agent_is_told_only_what_it_needs() -> None:
    """Peers that no action of it names are left out; the links are listed, whatever the order in the file."""
    instruction = compile_instruction(fleet_of(), "hn-01", 7)
    assert [peer.name for peer in instruction.peers] == ["near"]
    assert instruction.peers[0].host == "192.0.2.1"
    (schedule,) = instruction.schedules
    assert schedule.links == ("fixed", "mobile")
    assert [(action.name, action.task, action.peers) for action in schedule.actions] == [
        ("round_trip", "round_trip", ("near",))
    ]
    assert instruction.issued_unix_ns == 7


def test_a_peer_is_told_as_the_file_has_it() -> None:
    """Ports, TLS and paths reach the agent."""
    schedule = FleetSchedule(period_s=60, actions=(FleetAction(task="round_trip", peers=("far", "near")),))
    instruction = compile_instruction(fleet_of(schedules={"pulse": schedule}), "hn-01", 0)
    far, near = instruction.peers
    assert (far.name, far.stamp_port, far.tls) == ("far", 5000, True)
    assert (near.stamp_port, near.http_port, near.download_path) == (862, 80, "/download")
    assert instruction.schedules[0].actions[0].peers == ("far", "near")  # the order that a person wrote


@pytest.mark.parametrize(
    ("peer", "told"),
    [
        (FleetPeer(host="h", scope="domestic"), ("http", "/download", "/upload")),
        (
            FleetPeer(host="h", scope="domestic", protocol="librespeed", upload_path="/empty"),
            ("librespeed", "/backend/garbage.php", "/empty"),
        ),
        (FleetPeer(host="h", scope="domestic", protocol="ndt7"), ("ndt7", "/ndt/v7/download", "/ndt/v7/upload")),
    ],
)
def test_without_a_path_the_protocols_own_is_told(peer: FleetPeer, told: tuple[str, str, str]) -> None:
    """An agent need not know what each protocol's servers are called by."""
    schedule = FleetSchedule(period_s=60, actions=(FleetAction(task="round_trip", peers=("near",)),))
    fleet = msgspec.structs.replace(fleet_of(schedules={"pulse": schedule}), peers={"near": peer})
    (near,) = compile_instruction(fleet, "hn-01", 0).peers
    assert (near.protocol, near.download_path, near.upload_path) == told


@pytest.mark.parametrize(
    ("schedule", "links"),
    [
        (FleetSchedule(period_s=60, actions=(PING,), access=("fixed",)), ("fixed",)),
        (FleetSchedule(period_s=60, actions=(PING,), links=("mobile",)), ("mobile",)),
        (FleetSchedule(period_s=60, actions=(PING,), access=("fixed",), links=("fixed", "other")), ("fixed",)),
        (FleetSchedule(period_s=60, actions=(PING,), access=("fixed", "mobile")), ("fixed", "mobile")),
        (FleetSchedule(period_s=60, actions=(PING,), access=("fixed",), links=("mobile",)), None),
        (FleetSchedule(period_s=60, actions=(PING,), links=("other",)), None),
    ],
)
def test_a_schedule_runs_on_the_links_that_it_names(schedule: FleetSchedule, links: tuple[str, ...] | None) -> None:
    """By access, by name or both; an agent without such a link is not told of it."""
    told = compile_instruction(fleet_of(schedules={"pulse": schedule}), "hn-01", 0).schedules
    assert [one.links for one in told] == ([] if links is None else [links])


def test_a_probe_may_choose_its_schedules() -> None:
    """Absent means all of them, an empty list none."""
    other = FleetSchedule(period_s=300, actions=(FleetAction(task="host"),))
    schedules = {"pulse": fleet_of().schedules["pulse"], "other": other}
    names = {}
    for wanted in (None, (), ("other",)):
        probe = FleetProbe(province="ha_noi", links={"fixed": FIXED}, schedules=wanted)
        told = compile_instruction(fleet_of(schedules=schedules, probes={"hn-01": probe}), "hn-01", 0)
        names[wanted] = [schedule.name for schedule in told.schedules]
    assert names == {None: ["other", "pulse"], (): [], ("other",): ["other"]}


def test_a_daily_suppression_is_told_in_utc() -> None:
    """01:30 in Vietnam is 18:30 of the day before in UTC; the window may cross midnight there."""
    night = FleetSuppression(daily_start="01:30", daily_end="07:00")
    (told,) = compile_instruction(fleet_of(suppressions={"night": night}), "hn-01", 0).suppressions
    assert (told.daily_start_s, told.daily_end_s) == (18 * 3600 + 1800, 0)
    assert (told.start_unix_ns, told.end_unix_ns, told.schedules) == (None, None, ())


def test_a_window_is_told_in_nanoseconds() -> None:
    """To the microsecond that the file can say, without a float in between."""
    start = datetime(2027, 2, 5, 1, 2, 3, 456789, tzinfo=UTC)
    (told,) = compile_instruction(
        fleet_of(suppressions={"stop": FleetSuppression(start=start)}), "hn-01", 0
    ).suppressions
    assert told.start_unix_ns == 1_801_789_323_456_789_000
    assert told.end_unix_ns is None


@pytest.mark.parametrize(
    ("suppression", "told"),
    [
        (FleetSuppression(daily_start="01:00", daily_end="02:00", probes=("hn-01",)), True),
        (FleetSuppression(daily_start="01:00", daily_end="02:00", probes=("hn-02",)), False),
        (FleetSuppression(daily_start="01:00", daily_end="02:00", provinces=("ha_noi",)), True),
        (FleetSuppression(daily_start="01:00", daily_end="02:00", provinces=("hue",)), False),
        (FleetSuppression(daily_start="01:00", daily_end="02:00", schedules=("pulse", "x")), True),
        (FleetSuppression(daily_start="01:00", daily_end="02:00", schedules=("x",)), False),
    ],
)
def test_a_suppression_reaches_whom_it_concerns(suppression: FleetSuppression, told: bool) -> None:
    """One of schedules that an agent does not have must not become one of all schedules."""
    suppressions = compile_instruction(fleet_of(suppressions={"s": suppression}), "hn-01", 0).suppressions
    assert [set(one.schedules) <= {"pulse"} for one in suppressions] == ([True] if told else [])


def test_the_issue_time_is_no_part_of_the_revision() -> None:
    """The same content issued at another time is nothing new."""
    early, late = (compile_instruction(fleet_of(), "hn-01", at) for at in (1, 10**18))
    assert early.revision == late.revision
    assert len(early.revision) == 12
    assert int(early.revision, 16) >= 0


@given(seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_the_order_of_keys_does_not_matter(seed: int) -> None:
    """Whoever sorts the fleet file makes nothing new for any probe."""
    text = EXAMPLE.read_text(encoding="utf-8")
    chance = random.Random(seed)  # noqa: S311 - an order, not a secret
    other = yaml.safe_dump(shuffled(yaml.safe_load(text), chance), sort_keys=False)
    assert _revisions(parse(other)) == _revisions(load_fleet(EXAMPLE))


@given(
    period_s=st.floats(1, 86_400),
    packets=st.integers(1, 1000),
    host=st.from_regex(r"^[a-z]{1,10}\.vn$", fullmatch=True),
    path=st.from_regex(r"^/[a-zà-ỹ]{0,10}$", fullmatch=True),
)
@settings(max_examples=50, deadline=None)
def test_the_revision_survives_the_wire(period_s: float, packets: int, host: str, path: str) -> None:
    """What an agent or the broker gives back has the digest that it says, so it is known again."""
    action = FleetAction(task="round_trip", peers=("near",), parameters={"packets": packets, "interval_s": 1})
    instruction = compile_instruction(
        fleet_of(
            peers={"near": FleetPeer(host=host, scope="domestic", download_path=path)},
            schedules={"pulse": FleetSchedule(period_s=period_s, actions=(action,))},
        ),
        "hn-01",
        5,
    )
    back = msgspec.json.decode(encode(instruction), type=Instruction)
    assert back == instruction
    assert revision_of(back) == instruction.revision


@pytest.mark.parametrize(
    "changes",
    [
        {"schedules": {"pulse": FleetSchedule(period_s=61, actions=(PING,))}},
        {"schedules": {"pulse": FleetSchedule(period_s=60, actions=(PING, FleetAction(task="host")))}},
        {"peers": {"near": FleetPeer(host="192.0.2.9", scope="domestic")}},
        {"suppressions": {"s": FleetSuppression(daily_start="01:00", daily_end="02:00")}},
        {"probes": {"hn-01": FleetProbe(province="ha_noi", links={"fixed": FIXED})}},
    ],
)
def test_every_change_that_concerns_an_agent_is_a_new_revision(changes: dict[str, Any]) -> None:
    """Period, actions, peers, suppressions, links."""
    before = compile_instruction(fleet_of(), "hn-01", 0)
    assert compile_instruction(fleet_of(**changes), "hn-01", 0).revision != before.revision


def test_what_does_not_concern_an_agent_is_no_new_revision() -> None:
    """A peer that it does not use, another probe, its own plan."""
    more = fleet_of(
        peers={**fleet_of().peers, "third": FleetPeer(host="192.0.2.3", scope="domestic")},
        probes={
            "hn-01": FleetProbe(province="hue", commune="Phú Hội", links={"fixed": FIXED, "mobile": MOBILE}),
            "hn-02": FleetProbe(province="ha_noi", links={"fixed": FIXED}),
        },
    )
    assert compile_instruction(more, "hn-01", 0).revision == compile_instruction(fleet_of(), "hn-01", 0).revision


def test_an_instruction_that_fits_into_no_packet_is_refused() -> None:
    """The broker would cut the connection, again and again."""
    actions = tuple(FleetAction(task="dns", name=f"a{n}", parameters={"name": "x" * 200}) for n in range(150))
    schedules = {f"s{n}": FleetSchedule(period_s=60, actions=actions) for n in range(10)}
    with pytest.raises(InstructionTooLongError, match=r"hn-01 has .* bytes, more than a packet takes"):
        instructions_for(fleet_of(schedules=schedules))


def fleet_with(count: int, what: str) -> Fleet:
    """A fleet whose probe is told so many of something."""
    names = [f"n{number}" for number in range(count)]
    host, pulse = FleetAction(task="host"), FleetSchedule(period_s=60, actions=(PING,))
    if what == "schedules":
        return fleet_of(schedules=dict.fromkeys(names, FleetSchedule(period_s=60, actions=(host,))))
    if what == "suppressions":
        daily = FleetSuppression(daily_start="01:00", daily_end="02:00")
        return fleet_of(suppressions=dict.fromkeys(names, daily))
    if what == "links":
        return fleet_of(probes={"hn-01": FleetProbe(province="ha_noi", links=dict.fromkeys(names, FIXED))})
    if what == "measurements":
        actions = tuple(FleetAction(task="host", name=name) for name in names)
        return fleet_of(schedules={"pulse": FleetSchedule(period_s=60, actions=actions)})
    peers = dict.fromkeys(names, FleetPeer(host="192.0.2.1", scope="domestic"))
    halves = (names[: count // 2], names[count // 2 :])
    asked = [msgspec.structs.replace(PING, peers=tuple(half)) for half in halves]
    schedules = {f"s{number}": msgspec.structs.replace(pulse, actions=(one,)) for number, one in enumerate(asked)}
    return fleet_of(peers=peers, schedules=schedules)


@pytest.mark.parametrize(
    ("what", "most"),
    [("schedules", 64), ("peers", 256), ("suppressions", 64), ("links", 16), ("measurements", 256)],
)
def test_the_bounds_of_an_agent_are_kept_here_too(what: str, most: int) -> None:
    """What is compiled the agent takes; one more would make it refuse the whole, so it is refused here."""
    told = compile_instruction(fleet_with(most, what), "hn-01", 0)
    assert agent_side.parse(encode(told), "hn-01") == told
    with pytest.raises(InstructionTooLongError, match=f"hn-01 has {most + 1} {what}.*, and an agent takes {most}"):
        compile_instruction(fleet_with(most + 1, what), "hn-01", 0)


def test_the_plan_tells_new_changed_same_and_unknown_apart() -> None:
    """And clears what is unknown only when told to."""
    wanted = {name: Instruction(agent_id=name, revision="r2", issued_unix_ns=0) for name in ("a", "b", "c")}
    retained = {"b": "r1", "c": "r2", "d": "r1"}
    kinds = {change.agent_id: change.kind for change in plan_changes(wanted, retained)}
    assert kinds == {"a": "new", "b": "changed", "c": "same", "d": "unknown"}
    assert plan_changes(wanted, retained, remove=True)[-1] == Change("d", "removed", "r1", None)


def test_only_changes_are_sent() -> None:
    """A running controller hands its own publish function in: new and changed in full, removed as nothing."""
    wanted = {name: Instruction(agent_id=name, revision="r2", issued_unix_ns=0) for name in ("a", "b", "c")}
    sent: dict[str, bytes] = {}
    changes = plan_changes(wanted, {"b": "r1", "c": "r2", "d": "r1"}, remove=True)
    assert send_changes(changes, wanted, sent.__setitem__) == 3
    assert sent == {
        topic("a", "instruction"): encode(wanted["a"]),
        topic("b", "instruction"): encode(wanted["b"]),
        topic("d", "instruction"): b"",
    }


def test_what_is_retained_is_read_with_suspicion() -> None:
    """Garbage, and what is not what its revision says, counts as retained but of no known revision."""
    good = compile_instruction(fleet_of(), "hn-01", 0)
    forged = msgspec.structs.replace(good, agent_id="hn-02", schedules=())
    revisions = retained_revisions(
        {
            topic("hn-01", "instruction"): encode(good),
            topic("hn-02", "instruction"): encode(forged),
            topic("hn-03", "instruction"): b"{garbage",
            topic("hn-04", "instruction"): b"",
            topic("hn-05", "status"): b"{}",
            "fleet/v1/99/hn-06/instruction": encode(good),
            "something/else": b"",
        }
    )
    assert revisions == {"hn-01": good.revision, "hn-02": "", "hn-03": ""}


def _revisions(fleet: Fleet) -> dict[str, str]:
    return {agent_id: instruction.revision for agent_id, instruction in instructions_for(fleet).items()}
