"""The judgement of an agent, and how it is shown."""

from __future__ import annotations

import io
from typing import Any

import msgspec
import pytest
from rich.console import Console

from fleet_controller.errors import StoreUnavailableError
from fleet_controller.fleet.load import Fleet, FleetAction, FleetLink, FleetProbe, FleetSchedule
from fleet_controller.instruct import instructions_for
from fleet_controller.status import (
    NS_PER_S,
    AgentView,
    FleetView,
    State,
    judge,
    last_results,
    read_statuses,
    silent_after_s,
    view_fleet,
)
from fleet_controller.status_table import age, instruction_words, print_view
from probe.messages import (
    AgentState,
    ClockReading,
    ClockState,
    LinkStatus,
    SpoolStatus,
    Status,
    encode,
    topic,
)

NOW = 1_800_000_000 * NS_PER_S
FLEET = Fleet(
    schedules={
        "pulse": FleetSchedule(period_s=60, actions=(FleetAction(task="host"),)),
        "slow": FleetSchedule(period_s=3600, actions=(FleetAction(task="host"),)),
    },
    probes={
        name: FleetProbe(province="ha_noi", links={"fixed": FleetLink(operator="vnpt", access="fixed")})
        for name in ("a", "b")
    },
)
DESIRED = instructions_for(FLEET, 0)


def said(agent_id: str, state: AgentState = AgentState.ONLINE, **more: Any) -> dict[str, bytes]:
    """A retained status."""
    status = Status(agent_id=agent_id, state=state, reported_unix_ns=NOW - 5 * NS_PER_S, **more)
    return {topic(agent_id, "status"): encode(status)}


def shown(view: FleetView) -> str:
    """What a terminal shows."""
    out = io.StringIO()
    print_view(view, Console(file=out, width=220))
    return out.getvalue()


@pytest.mark.parametrize(
    ("state", "newest_age_s", "expected"),
    [
        (AgentState.ONLINE, 10, State.MEASURING),
        (AgentState.ONLINE, 180, State.MEASURING),
        (AgentState.ONLINE, 181, State.SILENT),
        (AgentState.ONLINE, None, State.SILENT),
        (AgentState.STOPPED, 10, State.STOPPED),
        (AgentState.LOST, 10, State.LOST),
        (None, None, State.NEVER_SEEN),
        (None, 10, State.MEASURING),
        (None, 181, State.LOST),
    ],
)
def test_an_agent_is_judged_by_its_word_and_its_results(
    state: AgentState | None, newest_age_s: int | None, expected: State
) -> None:
    """Connected is not measuring; and what measures without a word of it (the broker lost its disk) measures."""
    status = Status(agent_id="a", state=state, reported_unix_ns=NOW) if state is not None else None
    newest_ns = NOW - newest_age_s * NS_PER_S if newest_age_s is not None else None
    assert judge(status, newest_ns, asked=True, longest_s=180, now_ns=NOW) is expected


def test_a_result_from_a_clock_ahead_of_ours_is_fresh() -> None:
    """A probe's clock a few seconds ahead must not make it silent."""
    status = Status(agent_id="a", state=AgentState.ONLINE, reported_unix_ns=NOW)
    assert judge(status, NOW + 3 * NS_PER_S, asked=True, longest_s=60, now_ns=NOW) is State.MEASURING


def test_silence_is_three_of_the_shortest_periods() -> None:
    """At least a minute, which is also the answer for an agent without schedules."""
    assert silent_after_s(DESIRED["a"]) == 180
    assert silent_after_s(None) == 60
    fast = msgspec.structs.replace(FLEET.schedules["pulse"], period_s=1)
    fleet = msgspec.structs.replace(FLEET, schedules={"fast": fast})
    assert silent_after_s(instructions_for(fleet, 0)["a"]) == 60


def test_without_the_database_online_is_all_that_is_known() -> None:
    """A database that does not answer makes no probe silent; the problem is told."""

    def ask() -> Any:
        raise StoreUnavailableError("no answer from http://db")

    view = view_fleet(FLEET, DESIRED, {}, {**said("a"), **said("b", AgentState.LOST)}, ask, NOW)
    assert [agent.state for agent in view.agents] == [State.UNKNOWN, State.LOST]
    assert view.database_problem == "no answer from http://db"
    assert not view.all_measuring
    assert "no answer from http://db" in shown(view)


def test_an_agent_that_the_fleet_does_not_have_is_shown() -> None:
    """A probe with a forgotten entry, or a foreign one, must not be invisible; it does not count for the fleet."""
    results: Any = {"a": {"fixed": NOW}, "b": {None: NOW}}
    view = view_fleet(FLEET, DESIRED, {}, {**said("a"), **said("b"), **said("zz")}, lambda: results, NOW)
    assert [(agent.agent_id, agent.in_fleet) for agent in view.agents] == [("a", True), ("b", True), ("zz", False)]
    assert view.all_measuring
    assert "zz (not in the fleet file)" in shown(view)


def test_garbage_among_the_statuses_hides_no_other() -> None:
    """Another shard's topic, no JSON, wrong types: each is passed over."""
    found = read_statuses(
        {
            **said("a"),
            topic("b", "status"): b"\xff{",
            topic("c", "status"): b'{"agent_id": 5}',
            "fleet/v1/99/d/status": b"{}",
            topic("e", "instruction"): b"{}",
        }
    )
    assert set(found) == {"a"}


def test_everything_that_an_agent_said_is_shown() -> None:
    """Backlog, drops, version, clock, links with their own last result."""
    retained = said(
        "a",
        agent_version="0.1.0",
        instruction_revision=DESIRED["a"].revision,
        clock=ClockReading(state=ClockState.SYNCHRONISED, max_error_s=0.012),
        spool=SpoolStatus(results=17, bytes=9000, dropped_age=1, dropped_bytes=2, dropped_disk=4),
        links=(
            LinkStatus(link="fixed", interface="eth0", up=True),
            LinkStatus(link="mobile", interface="wwan0", up=False),
        ),
    )
    results: Any = {"a": {"fixed": NOW - 90 * NS_PER_S}}
    revisions = {"a": DESIRED["a"].revision}
    text = shown(view_fleet(FLEET, DESIRED, revisions, retained, lambda: results, NOW))
    for word in (
        "measuring",
        "2 min ago",
        "5 s ago",
        "17",
        "7",
        "0.1.0",
        "±12 ms",
        "fixed up 2 min ago",
        "mobile DOWN -",
    ):
        assert word in text
    assert DESIRED["a"].revision in text
    assert "2 agents: 1 measuring, 1 never_seen" in text


@pytest.mark.parametrize(
    ("in_force", "retained", "desired", "problem", "expected"),
    [
        ("r1", "r1", "r1", None, "r1"),
        ("r0", "r1", "r1", None, "r0, r1 not taken yet"),
        (None, "r1", "r1", None, "none, r1 not taken yet"),
        ("r0", "r0", "r1", None, "r0, r1 not published: apply"),
        (None, None, "r1", None, "none, r1 not published: apply"),
        ("r0", "r1", "r1", "unknown task", "refused: unknown task"),
        ("r0", "r0", None, None, "r0"),
        (None, None, None, None, "-"),
    ],
)
def test_the_instruction_in_force_is_shown_against_the_desired_one(
    in_force: str | None, retained: str | None, desired: str | None, problem: str | None, expected: str
) -> None:
    """What a person has to do about it stands in the words."""
    agent = AgentView(
        agent_id="a",
        state=State.MEASURING,
        in_fleet=True,
        instruction_in_force=in_force,
        instruction_retained=retained,
        instruction_desired=desired,
        instruction_problem=problem,
    )
    assert instruction_words(agent) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0 s ago"), (59, "59 s ago"), (60, "1 min ago"), (7200, "2 h ago"), (200_000, "2 d ago"), (-0.5, "now"),
     (-600, "ahead of us")],
)  # fmt: skip
def test_ages_are_short(seconds: float, expected: str) -> None:
    """One figure and its unit; a clock ahead of ours is said to be."""
    assert age(NOW - round(seconds * NS_PER_S), NOW) == expected
    assert age(None, NOW) == "-"


def test_words_of_an_agent_are_no_markup() -> None:
    """What an agent writes about itself is text: brackets in it colour nothing and break nothing."""
    view = view_fleet(FLEET, DESIRED, {}, said("a", agent_version="[/red][bold]1.0"), dict, NOW)
    assert "[/red][bold]1.0" in shown(view)


def test_words_of_an_agent_command_no_terminal() -> None:
    """Nor does what it writes clear a screen or turn a line round."""
    problem = "\x1b[2J\x9b31mbroken\u202e\r"
    view = view_fleet(FLEET, DESIRED, {}, said("a", instruction_problem=problem, agent_version=problem), dict, NOW)
    assert "\\x1b[2J\\x9b31mbroken\\u202e\\x0d" in shown(view)
    assert all(line.isprintable() for line in shown(view).splitlines())


def test_the_question_to_the_database_has_a_bound() -> None:
    """It names our measurements, a time bound and nothing that one of the three InfluxDB generations lacks."""
    asked: list[str] = []

    def query(influxql: str) -> list[dict[str, Any]]:
        asked.append(influxql)
        return [
            {"time": 5, "agent_id": "a", "link": "fixed"},
            {"time": 9, "agent_id": "a", "link": "fixed"},
            {"time": 7, "agent_id": "a", "link": ""},
        ]

    assert last_results(query, ("host", "dns")) == {"a": {"fixed": 9, None: 7}}
    assert 'FROM "host", "dns" WHERE time > now() - 7d GROUP BY "agent_id", "link"' in asked[0]
