"""The agent as a process: instruction in, results out, through stops, kills and a controller that is away."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_rig import AGENT_ID, AgentRig, Collector, collecting, fleet_probe, often, stamp

from probe.clock import NS_PER_S
from probe.messages import Action, AgentState, Command, NotRunReason, Result, encode


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[AgentRig]:
    """A broker and a peer that run, and an agent that does not yet."""
    made = AgentRig(tmp_path / "rig")
    try:
        made.broker.start()
        made.peer.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def collector(rig: AgentRig) -> Iterator[Collector]:
    """The controller's stand-in."""
    with collecting(rig.broker.port) as made:
        yield made


def is_measured(result: Result, task: str = "round_trip") -> bool:
    """Whether it has values of a task."""
    return result.task == task and result.values is not None


def reason(result: Result) -> NotRunReason | None:
    """Why it was not run."""
    return result.not_run.reason if result.not_run is not None else None


def test_an_instruction_becomes_results(rig: AgentRig, collector: Collector) -> None:
    """A retained instruction is followed: values on each link, refusals with their reason, a status that says so."""
    host = Action(name="host", task="host", parameters={"window_s": 0.1})
    refused = Action(name="evil", task="round_trip", peers=("evil",))
    unknown = Action(name="moon", task="moon")
    collector.instruct(rig.instruction(often(stamp(), refused, unknown, host, links=("fixed0", "mobile0"))))
    rig.agent.start()
    for link in ("fixed0", "mobile0"):
        result = collector.wait_for_result(lambda one, link=link: is_measured(one) and one.link == link, link)  # type: ignore[misc]  # mypy cannot type a lambda's default
        assert result.values is not None
        assert result.values["packets_received"] == 2
        assert result.variant == {"method": "stamp", "ip_version": "4"}
        assert (result.schedule, result.action, result.peer) == ("often", "stamp", "near")
        assert result.cycle_number is not None
        assert abs(result.start_unix_ns - result.cycle_number * NS_PER_S) < 40 * NS_PER_S
    collector.wait_for_result(lambda one: one.task == "host" and one.link is None, "the host's own")
    collector.wait_for_result(lambda one: reason(one) is NotRunReason.TARGET_REFUSED, "a target refused")
    collector.wait_for_result(lambda one: reason(one) is NotRunReason.UNKNOWN_TASK, "an unknown task")
    status = collector.wait_for_status(
        lambda one: one.instruction_revision == "one" and bool(one.schedules), "the instruction in force"
    )
    assert status.state is AgentState.ONLINE
    assert status.instruction_problem == "unknown task 'moon' in schedule often"
    assert {(one.schedule, one.link) for one in status.schedules} >= {("often", "fixed0")}
    assert [(link.link, link.up) for link in status.links] == [("fixed0", True), ("mobile0", True)]


def test_receipts_empty_the_spool(rig: AgentRig, collector: Collector) -> None:
    """What the controller has taken is deleted: after an idle moment nothing waits any more."""
    collector.instruct(rig.instruction(often(stamp())))
    rig.agent.start()
    collector.wait_for_result(is_measured, "a result")
    collector.instruct(rig.instruction(revision="idle"))
    status = collector.wait_for_status(
        lambda one: one.instruction_revision == "idle" and one.spool is not None and one.spool.results == 0, "empty"
    )
    assert status.spool is not None
    starts = [one.start_unix_ns for one in collector.results]
    assert len(starts) == len(set(starts))


def test_without_controller_the_last_instruction_stays(rig: AgentRig) -> None:
    """After a restart, with a broker that has forgotten everything, the agent measures as it was told last."""
    with collecting(rig.broker.port) as collector:
        collector.instruct(rig.instruction(often(stamp())))
        rig.agent.start()
        collector.wait_for_result(is_measured, "a result")
        collector.wait_for_status(lambda one: one.instruction_revision == "one", "the instruction kept")
    assert rig.end_with(signal.SIGTERM) < 8
    rig.agent.stop()
    rig.broker.kill()
    rig.broker.wipe()
    rig.broker.start()
    with collecting(rig.broker.port) as collector:
        restarted_ns = time.time_ns()
        rig.agent.start()
        collector.wait_for_result(lambda one: is_measured(one) and one.start_unix_ns > restarted_ns, "a new result")
        status = collector.wait_for_status(lambda one: one.state is AgentState.ONLINE, "the status")
        assert status.instruction_revision == "one"


def test_a_broker_that_is_away_stops_no_measurement(rig: AgentRig) -> None:
    """What is measured while there is no broker waits in the spool and is delivered when there is one."""
    with collecting(rig.broker.port) as collector:
        collector.instruct(rig.instruction(often(stamp())))
        rig.agent.start()
        collector.wait_for_result(is_measured, "a result")
    rig.broker.stop()
    away_ns = time.time_ns()
    deadline = time.monotonic() + 30
    while fewer_than(rig, 3):
        assert time.monotonic() < deadline, rig.log()
        time.sleep(0.2)
    back_ns = time.time_ns()
    rig.broker.start()
    with collecting(rig.broker.port) as collector:
        collector.wait_for_result(lambda one: away_ns < one.start_unix_ns < back_ns, "what was measured meanwhile")


def fewer_than(rig: AgentRig, count: int) -> bool:
    """Whether fewer results wait, as `fleet-probe outbox` says."""
    told = fleet_probe("outbox", "--config", str(rig.config), "--json")
    assert told.returncode == 0, told.stderr
    return int(json.loads(told.stdout)["status"]["results"]) < count


def test_a_bad_instruction_changes_nothing(rig: AgentRig, collector: Collector) -> None:
    """Garbage, another's instruction and one out of bounds are refused with their reason; the old one stays."""
    collector.instruct(rig.instruction(often(stamp())))
    rig.agent.start()
    collector.wait_for_result(is_measured, "a result")
    too_often = rig.instruction(often(stamp(), period_s=0.001), revision="bad")
    for payload, problem in (
        (b"\xff{", "malformed"),
        (encode(too_often).replace(AGENT_ID.encode(), b"hanoi-2"), "it is for agent 'hanoi-2'"),
        (encode(too_often), "period_s 0.001"),
    ):
        collector.instruct(payload)
        status = collector.wait_for_status(
            lambda one, problem=problem: problem in (one.instruction_problem or ""),  # type: ignore[misc]  # mypy cannot type a lambda's default
            problem,
        )
        assert status.instruction_revision == "one"
    after_ns = time.time_ns()
    collector.wait_for_result(lambda one: is_measured(one) and one.start_unix_ns > after_ns, "a result afterwards")
    collector.instruct(b"")
    collector.instruct(rig.instruction(often(stamp()), revision="two"))
    status = collector.wait_for_status(lambda one: one.instruction_revision == "two", "the next good one")
    assert status.instruction_problem is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_clean(rig: AgentRig, collector: Collector, number: signal.Signals) -> None:
    """A signal ends the agent within 5 s: what it measures is recorded as interrupted, its status says stopped."""
    long = stamp(packets=100, interval_s=1.0)
    collector.instruct(rig.instruction(often(long)))
    rig.agent.start()
    collector.wait_for(lambda: any(one.state == "started" for one in collector.progress), "a measurement began")
    assert rig.end_with(number) < 5
    collector.wait_for_status(lambda one: one.state is AgentState.STOPPED, "stopped")
    rows = fleet_probe("outbox", "--config", str(rig.config), "--json")
    waiting = [row["result"] for row in json.loads(rows.stdout)["rows"]]
    assert any((row.get("not_run") or {}).get("reason") == "interrupted" for row in waiting)
    assert "Traceback" not in rig.log()


def test_a_killed_agent_leaves_its_row(rig: AgentRig, collector: Collector) -> None:
    """After SIGKILL in mid-measurement, the next start delivers the row that was written first: interrupted."""
    collector.instruct(rig.instruction(often(stamp(packets=100, interval_s=1.0))))
    rig.agent.start()
    collector.wait_for(lambda: any(one.state == "started" for one in collector.progress), "a measurement began")
    rig.agent.kill()
    killed_ns = time.time_ns()
    rig.agent.start()
    result = collector.wait_for_result(lambda one: reason(one) is NotRunReason.INTERRUPTED, "the interrupted row")
    assert result.start_unix_ns < killed_ns
    assert (result.task, result.peer, result.link) == ("round_trip", "near", "fixed0")


def test_heavy_tasks_never_overlap(rig: AgentRig, collector: Collector) -> None:
    """Capacity on two links, and `once` beside it: no two of them at the same moment, and none is lost silently."""
    load = Action(name="load", task="capacity", peers=("near",), parameters={"mode": "capped", "max_bytes": 50_000_000})
    schedules = (often(load, period_s=2.0, links=("fixed0", "mobile0")), often(stamp(), name="light"))
    collector.instruct(rig.instruction(*schedules))
    rig.agent.start()
    collector.wait_for_result(lambda one: is_measured(one, "capacity"), "a first capacity")
    once = fleet_probe(
        *("once", "capacity", "--config", str(rig.config), "--peer", "near", "--json"),
        *("--set", "mode=capped", "--set", "max_bytes=50000000"),
    )
    assert once.returncode == 0, once.stderr + once.stdout
    collector.wait_for(lambda: sum(is_measured(one, "capacity") for one in collector.results) >= 4, "more capacity", 60)
    mine = json.loads(once.stdout)
    spans = sorted(
        (start, start + int(duration * NS_PER_S))
        for start, duration in [
            (mine["start_unix_ns"], mine["duration_s"]),
            *((one.start_unix_ns, one.duration_s or 0) for one in collector.results if is_measured(one, "capacity")),
        ]
    )
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans)), spans
    assert any(is_measured(one) for one in collector.results)


def test_a_command_is_run_once(rig: AgentRig, collector: Collector) -> None:
    """A command is measured on each link under its own id; its repeat and an expired one are left alone."""
    collector.instruct(rig.instruction())
    rig.agent.start()
    collector.wait_for_status(lambda one: one.instruction_revision == "one", "the instruction")
    soon = time.time_ns() + 60 * NS_PER_S
    collector.command(Command(command_id="old", action=stamp(), expires_unix_ns=time.time_ns() - 1))
    collector.command(b"{")
    for _ in range(2):
        collector.command(Command(command_id="now", action=stamp(), expires_unix_ns=soon))
    last = Action(name="h", task="host", parameters={"window_s": 0.1})
    collector.wait_for(lambda: len(collector.results) >= 2, "the command's results")
    collector.command(Command(command_id="last", action=last, expires_unix_ns=soon))
    collector.wait_for_result(lambda one: one.command_id == "last", "a later command")
    assert sorted((one.command_id, one.link) for one in collector.results if one.task == "round_trip") == [
        ("now", "fixed0"),
        ("now", "mobile0"),
    ]
    assert {one.schedule for one in collector.results} == {"command"}
    assert {(one.task, one.link, one.state) for one in collector.progress} >= {
        ("round_trip", "fixed0", "started"),
        ("round_trip", "mobile0", "finished"),
    }


def test_two_agents_do_not_share_a_state(rig: AgentRig, collector: Collector) -> None:
    """A second agent on the same folder refuses to start, in one line, and the first goes on."""
    collector.instruct(rig.instruction())
    rig.agent.start()
    collector.wait_for_status(lambda one: one.state is AgentState.ONLINE, "on line")
    second = fleet_probe("run", "--config", str(rig.config))
    assert second.returncode == 2
    assert second.stderr.splitlines()[-1].endswith(f"another agent runs on {rig.state_dir} (stop it first)")


def test_systemd_hears_ready_and_alive(rig: AgentRig, tmp_path: Path) -> None:
    """Over NOTIFY_SOCKET the agent says READY, feeds the watchdog, and says STOPPING before it ends."""
    listen = (
        "import os, socket, subprocess, sys, signal\n"
        "sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "sock.bind(sys.argv[1]); sock.settimeout(20)\n"
        "os.environ.update(NOTIFY_SOCKET=sys.argv[1], WATCHDOG_USEC='200000')\n"
        "agent = subprocess.Popen([sys.executable, '-m', 'probe.cli', 'run', '--config', sys.argv[2]])\n"
        "said = []\n"
        "while said.count('WATCHDOG=1') < 3 or 'READY=1' not in said:\n"
        "    said.append(sock.recv(100).decode())\n"
        "agent.send_signal(signal.SIGTERM)\n"
        "while said[-1] != 'STOPPING=1':\n"
        "    said.append(sock.recv(100).decode())\n"
        "print(said[0], said[-1], agent.wait(20))\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", listen, str(tmp_path / "notify"), str(rig.config)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert told.stdout.split()[-2:] == ["STOPPING=1", "0"], told.stderr
