"""`fleet-controller apply`, `status`, `measure` and `quarantine` against the real broker and the real database."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from command_site import TIME_OUT_S, FakeAgent, Site

from fleet_controller import instruct
from fleet_controller.broker_session import BrokerSession, Outgoing
from fleet_controller.cli import main
from fleet_controller.config import BrokerConfig
from fleet_controller.errors import BrokerError
from fleet_controller.fleet.load import load_fleet
from fleet_controller.instruct import instructions_for
from fleet_controller.lab.services import Influxd, Mosquitto
from fleet_controller.quarantine import Quarantine
from fleet_controller.records import Rejected, RejectReason
from probe.messages import AgentState, ClockReading, ClockState, Instruction, SpoolStatus, topic

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def site(tmp_path: Path, broker: Mosquitto, influxd: Influxd) -> Site:
    """A configuration for the real servers, and a fleet of two probes."""
    folder = tmp_path / "site"
    folder.mkdir()
    site = Site(folder, broker, influxd)
    site.write_fleet("p1", "p2")
    return site


@pytest.fixture
def run(site: Site, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process: exit code, standard output, standard error."""

    def run_command(*words: str) -> tuple[int, str, str]:
        code = main([*words, "--config", str(site.config_file)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run_command


@pytest.fixture
def agents(broker: Mosquitto) -> Iterator[Callable[[str], FakeAgent]]:
    """Makes agents, and takes them away at the end."""
    made: list[FakeAgent] = []

    def make(agent_id: str) -> FakeAgent:
        made.append(FakeAgent(broker, agent_id))
        return made[-1]

    yield make
    for agent in made:
        agent.leave()


def retained(site: Site) -> dict[str, bytes]:
    """The instructions that the broker retains."""
    with BrokerSession(site.config.broker, "test") as session:
        return session.retained("instruction")


def changes(out: str) -> dict[str, str]:
    """What `apply --json` says of each agent."""
    return {change["agent_id"]: change["kind"] for change in json.loads(out)["changes"]}


def test_apply_sends_what_changed_and_no_more(site: Site, run: Run) -> None:
    """The first time everything, the second time nothing, then the one that is new; each is readable and complete."""
    code, out, _ = run("apply", "--json")
    assert (code, changes(out)) == (0, {"p1": "new", "p2": "new"})
    first = retained(site)
    told = msgspec.json.decode(first[topic("p1", "instruction")], type=Instruction)
    assert told.revision == instructions_for(load_fleet(site.fleet_file))["p1"].revision
    assert changes(run("apply", "--json")[1]) == {"p1": "same", "p2": "same"}
    assert retained(site) == first  # not sent again: even the issue times are the old ones
    site.write_fleet("p1", "p2", "p3")
    assert changes(run("apply", "--json")[1]) == {"p1": "same", "p2": "same", "p3": "new"}
    site.write_fleet("p1", "p2", "p3", period_s=20)
    code, out, _ = run("apply")
    assert "3 instructions were sent, 0 were up to date" in out
    assert "p1: is told anew" in out


def test_a_removed_agent_keeps_its_instruction_until_told_otherwise(site: Site, run: Run) -> None:
    """A line deleted by mistake must not stop a probe; `--remove` does."""
    run("apply")
    site.write_fleet("p1")
    code, out, _ = run("apply")
    assert code == 0
    assert "p2: is not in the fleet file and keeps its instruction" in out
    assert set(retained(site)) == {topic("p1", "instruction"), topic("p2", "instruction")}
    assert changes(run("apply", "--json", "--remove")[1]) == {"p1": "same", "p2": "removed"}
    assert set(retained(site)) == {topic("p1", "instruction")}


def test_a_dry_run_changes_nothing(site: Site, run: Run) -> None:
    """It says what would be sent."""
    code, out, _ = run("apply", "--dry-run")
    assert code == 0
    assert "2 instructions would be sent, 0 were up to date" in out
    assert retained(site) == {}


def test_what_somebody_else_retained_is_put_right(site: Site, run: Run) -> None:
    """Garbage in the place of an instruction, or one changed under its old revision, is replaced."""
    run("apply")
    good = retained(site)
    name = topic("p1", "instruction")
    forged = msgspec.structs.replace(msgspec.json.decode(good[name], type=Instruction), schedules=())
    for payload in (b"{garbage", msgspec.json.encode(forged)):
        with BrokerSession(site.config.broker, "test") as session:
            session.publish([Outgoing(name, payload, retain=True)])
        assert changes(run("apply", "--json")[1]) == {"p1": "changed", "p2": "same"}
        told = msgspec.json.decode(retained(site)[name], type=Instruction)
        assert told.schedules == msgspec.json.decode(good[name], type=Instruction).schedules


def test_a_bad_fleet_file_changes_nothing(site: Site, run: Run) -> None:
    """Every mistake is told, the exit code is that of a configuration, and the broker is not asked."""
    site.fleet_file.write_text("probes:\n  p1: {}\n  P2: {}\n")
    code, out, err = run("apply")
    assert (code, out) == (2, "")
    assert f"{site.fleet_file}:2: probes.p1: misses the key `province`" in err
    assert f"{site.fleet_file}:3: probes.P2: 'P2' is not an agent id" in err
    assert retained(site) == {}


def test_a_large_fleet_is_read_to_the_end(broker: Mosquitto) -> None:
    """The end of what is retained is found, not guessed: 2,000 instructions of 4 KB are all there."""
    config = BrokerConfig(host=broker.host, port=broker.port)
    messages = [Outgoing(topic(f"p{n}", "instruction"), b"x" * 4096, retain=True) for n in range(2000)]
    with BrokerSession(config, "test") as session:
        assert {code.value for code in session.publish(messages)} <= {0, 0x10}
    with BrokerSession(config, "test") as session:
        assert len(session.retained("instruction")) == 2000
        assert session.retained("status") == {}


@pytest.mark.parametrize(
    "acl",
    [
        "topic readwrite fleet/#\n",
        "topic readwrite fleet/v1/+/+/+\n",
        "topic readwrite fleet/v1/+/+/+\ntopic write fleet/v1/session/#\n",
    ],
)
def test_the_end_is_found_where_the_mark_may_not_be_sent(tmp_path: Path, acl: str) -> None:
    """A broker that allows the contract's topics alone refuses or hides our mark; its silence ends the reading."""
    with guarded(tmp_path, acl) as session:
        session.publish([Outgoing(topic("p1", "instruction"), b"x", retain=True)])
        assert session.retained("instruction") == {topic("p1", "instruction"): b"x"}


def test_a_refused_instruction_is_an_error(tmp_path: Path) -> None:
    """The broker answers an unauthorised publication with a reason code: paho alone would call it published."""
    wanted = {"p1": Instruction(agent_id="p1", revision="r", issued_unix_ns=0)}
    rules = "topic read fleet/#\ntopic readwrite fleet/v1/session/#\n"
    refused = pytest.raises(BrokerError, match=r"refused 1 of 1 instructions: .*Not authorized")
    with guarded(tmp_path, rules) as session, refused:
        instruct.publish_instructions(session, wanted)


def test_status_tells_the_states_apart(site: Site, run: Run, agents: Callable[[str], FakeAgent]) -> None:
    """Measuring, silent, stopped, lost by its Last Will, never seen: five probes, each in its own state, in 2 s."""
    site.write_fleet("a-measuring", "b-silent", "c-stopped", "d-lost", "e-never")
    run("apply")
    revision = instructions_for(load_fleet(site.fleet_file))["a-measuring"].revision
    spool = SpoolStatus(results=3, bytes=900, dropped_age=1, dropped_disk=2)
    clock = ClockReading(state=ClockState.SYNCHRONISED, max_error_s=0.004)
    agents("a-measuring").say(
        AgentState.ONLINE, agent_version="9.9", instruction_revision=revision, spool=spool, clock=clock
    )
    site.store_result("a-measuring")
    agents("b-silent").say(AgentState.ONLINE)
    site.store_result("b-silent", age_s=61)
    agents("c-stopped").say(AgentState.STOPPED)
    lost = agents("d-lost")
    lost.say(AgentState.ONLINE)
    lost.vanish()
    wait_until(lambda: "lost" in states(run).values())
    started_s = time.monotonic()
    code, out, _ = run("status", "--json")
    assert time.monotonic() - started_s < 2
    view = json.loads(out)
    found = {agent["agent_id"]: agent["state"] for agent in view["agents"]}
    assert found == {
        "a-measuring": "measuring", "b-silent": "silent", "c-stopped": "stopped", "d-lost": "lost",
        "e-never": "never_seen",
    }  # fmt: skip
    assert code == 1
    first = view["agents"][0]
    assert first["instruction_in_force"] == first["instruction_retained"] == first["instruction_desired"] == revision
    assert first["spool"] == {"results": 3, "bytes": 900, "dropped_age": 1, "dropped_disk": 2}
    assert first["last_result_unix_ns"] > time.time_ns() - 60 * 10**9
    table = run("status")[1]
    assert "5 agents: 1 measuring, 1 silent, 1 stopped, 1 lost, 1 never_seen" in table
    assert "9.9" in table


def test_status_is_content_when_all_measure(site: Site, run: Run, agents: Callable[[str], FakeAgent]) -> None:
    """Exit code 0: every probe of the fleet is online and its results stand in the database."""
    for agent_id in ("p1", "p2"):
        agents(agent_id).say(AgentState.ONLINE)
        site.store_result(agent_id)
    assert run("status")[0] == 0


def test_status_says_when_the_database_is_away(run: Run, agents: Callable[[str], FakeAgent], influxd: Influxd) -> None:
    """What the agents said is still shown; silence is not concluded from a dead database; exit code 3."""
    agents("p1").say(AgentState.ONLINE)
    influxd.stop()
    code, out, err = run("status", "--json")
    assert code == 3
    assert [agent["state"] for agent in json.loads(out)["agents"]] == ["unknown", "never_seen"]
    assert "the database could not be asked" in err


@pytest.mark.parametrize("command", [("apply",), ("status",), ("measure", "p1", "host")])
def test_a_broker_that_is_away_is_told(run: Run, broker: Mosquitto, command: tuple[str, ...]) -> None:
    """Exit code 3 and the address that was tried."""
    broker.stop()
    code, out, err = run(*command)
    assert (code, out) == (3, "")
    assert f"the broker 127.0.0.1:{broker.port} cannot be reached" in err


def test_a_broker_that_says_no_is_told(tmp_path: Path) -> None:
    """A refused connection ends at once with the broker's reason, not after ten seconds."""
    with Mosquitto(tmp_path / "closed", settings="allow_anonymous false\n") as closed:
        started_s = time.monotonic()
        with pytest.raises(BrokerError, match=r"said no: Not authorized"):
            BrokerSession(BrokerConfig(host=closed.host, port=closed.port), "test").__enter__()
        assert time.monotonic() - started_s < TIME_OUT_S


def test_measure_reaches_the_agent_and_waits_for_its_result(
    site: Site, run: Run, agents: Callable[[str], FakeAgent]
) -> None:
    """The command carries task, parameters and expiry; what the agent reports under its id is printed."""
    agent = agents("p1")
    site.store_result("p1")  # of a schedule: not the answer

    def answer() -> None:
        agent.wait_for("command")
        site.store_result("p1", command=agent.commands[0])

    answering = threading.Thread(target=answer)
    answering.start()
    code, out, err = run("measure", "p1", "host", "--set", "window_s=0.2", "--wait", "20", "--json")
    answering.join(TIME_OUT_S)
    assert (code, err) == (0, "")
    command = agent.commands[0]
    assert (command.action.task, command.action.parameters) == ("host", {"window_s": 0.2})
    assert command.expires_unix_ns > time.time_ns()
    said = json.loads(out)
    assert said["command_id"] == command.command_id
    assert [(row["measurement"], row["outcome"]) for row in said["results"]] == [("host", "values")]


def test_measure_without_waiting_prints_the_id(run: Run, agents: Callable[[str], FakeAgent]) -> None:
    """Which is in the database's field command_id later."""
    agent = agents("p1")
    code, out, _ = run("measure", "p1", "round_trip", "--link", "fixed", "--peer", "near")
    agent.wait_for("command")
    assert (code, out.strip()) == (0, agent.commands[0].command_id)
    assert (agent.commands[0].links, agent.commands[0].action.peers) == (("fixed",), ("near",))


def test_measure_says_when_nothing_came(run: Run, agents: Callable[[str], FakeAgent], site: Site) -> None:
    """Exit code 1 after the time that was granted."""
    agents("p1")
    site.store_result("p1")
    code, _, err = run("measure", "p1", "host", "--wait", "0.2")
    assert code == 1
    assert "0 of 1 results within 0.2 s" in err


def test_measure_says_when_nobody_listens(run: Run) -> None:
    """A command to a probe that the broker does not know would vanish: exit code 3 instead."""
    code, _, err = run("measure", "p2", "host")
    assert code == 3
    assert "the broker knows no agent p2" in err


def test_the_quarantine_is_listed_shown_and_replayed(site: Site, run: Run) -> None:
    """What cannot be accepted is seen with its reason, harmless to the terminal, and tried again."""
    quarantine = Quarantine(site.config.quarantine_dir, site.config.quarantine)
    bad = [(b"\x1b[2Jno json", RejectReason.NOT_JSON, b"1"), (b'{"a": [1]}', RejectReason.WRONG_TYPES, b"2")]
    quarantine.add(
        [Rejected(topic("p1", "report"), "p1", reason, "de\x1btail", payload, key) for payload, reason, key in bad]
    )
    quarantine.close()
    code, out, _ = run("quarantine", "list")
    assert code == 0
    assert "not_json" in out
    assert "2 items" in out
    assert "\x1b" not in out
    items = json.loads(run("quarantine", "list", "--reason", "not_json", "--json")[1])["items"]
    assert [(item["reason"], item["agent_id"]) for item in items] == [("not_json", "p1")]
    code, out, _ = run("quarantine", "show", str(items[0]["id"]))
    assert code == 0
    assert "\\x1b[2Jno json" in out
    code, out, _ = run("quarantine", "replay", "--all", "--json")
    assert code == 1
    assert {item["kind"] for item in json.loads(out)["items"]} == {"kept"}
    assert run("quarantine", "show", "99")[0] == 1


def test_the_program_can_be_started_as_one(site: Site) -> None:
    """As a process of its own: output, exit code, and no complaint when who reads it has enough."""
    words = [sys.executable, "-m", "fleet_controller.cli", "check", "--config", str(site.config_file)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=TIME_OUT_S * 3, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "no mistakes: 2 probes with 2 links in 1 provinces" in done.stdout
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.close()
        assert child.stderr is not None
        assert child.stderr.read() == b""


@contextmanager
def guarded(folder: Path, rules: str) -> Iterator[BrokerSession]:
    """A session with a broker that has these access rules."""
    (folder / "acl").write_text(rules)
    with (
        Mosquitto(folder / "guarded", settings=f"acl_file {folder / 'acl'}\n") as broker,
        BrokerSession(BrokerConfig(host=broker.host, port=broker.port), "test") as session,
    ):
        yield session


def states(run: Run) -> dict[str, Any]:
    """The states that `status` tells."""
    return {agent["agent_id"]: agent["state"] for agent in json.loads(run("status", "--json")[1])["agents"]}


def wait_until(done: Callable[[], bool]) -> None:
    """Ask again until it is so."""
    deadline_s = time.monotonic() + TIME_OUT_S
    while not done():
        assert time.monotonic() < deadline_s, "it did not come to pass"
