"""The controller whole, against the real broker and the real database: nothing is lost, whatever is killed."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from ingest_kit import (
    AGENT,
    TASKS,
    AgentClient,
    altered,
    controller_config,
    report,
    result,
    start_controller,
    wait_until,
)

import probe.tasks
from fleet_controller.config import ControllerConfig
from fleet_controller.controller import Controller, serve
from fleet_controller.errors import ConfigError, ControllerError
from fleet_controller.lab.services import Influxd, Mosquitto
from fleet_controller.quarantine import Quarantine
from fleet_controller.replay import replay
from probe.clock import NS_PER_S
from probe.messages import PACKET_BYTES_MAX, encode, topic


@pytest.fixture
def agent(broker: Mosquitto) -> Iterator[AgentClient]:
    """An agent's client."""
    client = AgentClient(broker.port)
    yield client
    client.close()


@contextmanager
def running(config: ControllerConfig) -> Iterator[Controller]:
    """A controller in this process, connected."""
    controller = Controller(config, TASKS)
    controller.start()
    try:
        assert controller.ready.wait(20)
        yield controller
    finally:
        controller.stop()


def rows(influxd: Influxd, columns: str = "packets_sent, sequence") -> list[dict[str, Any]]:
    """What stands in the database, asked past our own code."""
    question = f"SELECT {columns} FROM gauge WHERE time > 0"  # noqa: S608 - InfluxQL of our own words
    parameters = {"db": "fleet", "q": question, "epoch": "ns"}
    answer = httpx.get(f"{influxd.url}/query", params=parameters).json()["results"][0]
    return [
        dict(zip(series["columns"], row, strict=True))
        for series in answer.get("series", [])
        for row in series["values"]
    ]


def change_database(influxd: Influxd, statement: str) -> None:
    """What an operator would do by hand."""
    httpx.post(f"{influxd.url}/query", params={"q": statement}).raise_for_status()


def items(config: ControllerConfig) -> dict[str, str]:
    """What is in the quarantine: reason and detail."""
    quarantine = Quarantine(config.quarantine_dir, config.quarantine)
    try:
        return {item.reason: item.detail for item in quarantine.list(1000)}
    finally:
        quarantine.close()


def wait_until_ready(agent: AgentClient) -> None:
    """Wait until the controller's session is there: it answers even a report without results."""

    def answered() -> bool:
        agent.send(report(sequence_space="hello"))
        return any(receipt.sequence_space == "hello" for receipt in agent.receipts)

    wait_until(answered, "the controller")


def test_results_are_stored_and_receipted(
    broker: Mosquitto, influxd: Influxd, agent: AgentClient, tmp_path: Path
) -> None:
    """Each result of a report stands in the database before its receipt is sent."""
    with running(controller_config(tmp_path, broker.port, influxd.url)) as controller:
        agent.send(report(*(result(number) for number in range(7))))
        agent.wait_for_receipt(7)
        assert [row["sequence"] for row in rows(influxd)] == list(range(1, 8))
        agent.send(report(result(99), first=10))
        wait_until(lambda: agent.receipts[-1].beyond == ((10, 10),), "a receipt beyond a gap")
        agent.send(report(*(result(number) for number in range(7))), report(result(100), first=12, floor=12))
        agent.wait_for_receipt(12)
        counters = controller.counters()
        assert (counters.stored, counters.duplicates, counters.lost) == (16, 7, 3)  # lost: 8, 9 and 11
        assert counters.lag_s is not None
        assert counters.trouble is None
        assert len(rows(influxd)) == 9
        agent.send(report(result(-3600 * NS_PER_S), first=13, floor=12))
        agent.wait_for_receipt(13)
        late = controller.counters()
        assert late.lag_s is not None
        assert late.lag_s - counters.lag_s < 600  # what comes late is not the newest


GARBAGE: list[tuple[str, bytes]] = [
    ("not_json", b"hello"),
    ("wrong_types", b'{"agent_id": 5}'),
    ("too_large", b"x" * 10_000_000),
    ("unknown_task", encode(report(result(task="teleport"), first=2))),
    ("future_schema", altered(report(result(), first=3), schema_version=99)),
    ("foreign_agent", altered(report(result(), first=4), agent_id="hn-02")),
]


def test_garbage_is_quarantined_while_good_reports_flow(
    broker: Mosquitto, influxd: Influxd, agent: AgentClient, tmp_path: Path
) -> None:
    """Each kind of garbage is kept with its own reason, once, and every good report around it is stored."""
    config = controller_config(tmp_path, broker.port, influxd.url)
    with running(config) as controller:
        for _ in range(2):
            for number, (_, payload) in enumerate(GARBAGE):
                agent.send(payload, report(result(number), first=10 + number))
        agent.send(altered(report(), agent_id=None).replace(b"null", b"NaN"), to=topic("hn-02", "report"))
        agent.send(report(result(), agent_id="hn-99"), to=topic("hn-99", "report"))
        wait_until(lambda: controller.counters().quarantined == 14, "all garbage")
        wait_until(lambda: len(rows(influxd)) == 6, "all good reports")
    found = items(config)
    assert set(found) == {*(reason for reason, _ in GARBAGE), "unknown_agent"}
    assert "10000000 bytes" in found["too_large"]
    assert "update the controller, then replay" in found["future_schema"]
    assert str(PACKET_BYTES_MAX) in found["too_large"]
    # What can be numbered counts as taken: the quarantine is as durable as the database.
    assert any((2, 3) in receipt.beyond or receipt.contiguous >= 3 for receipt in agent.receipts)


def test_a_bad_result_is_replayed_after_the_fix(
    broker: Mosquitto, influxd: Influxd, agent: AgentClient, tmp_path: Path
) -> None:
    """What was sent before its link, its task or its agent was known is stored when it is known, by its own words."""
    config = controller_config(tmp_path, broker.port, influxd.url)
    late = report(result(5), agent_id="hn-99")
    bad = [result(1, link="second"), result(2, task="ruler")]
    with running(config):
        agent.send(report(result(), *bad), late, to=topic(AGENT, "report"))
        agent.send(late, to=topic("hn-99", "report"))
        agent.wait_for_receipt(3)
        wait_until(lambda: set(items(config)) >= {"unknown_agent", "unknown_link", "unknown_task"}, "the quarantine")
        quarantine = Quarantine(config.quarantine_dir, config.quarantine)
        numbers = quarantine.ids()
        assert {outcome.kind for outcome in replay(config, numbers, TASKS).values()} == {"kept"}
        assert quarantine.ids() == numbers
        assert all(item.seen == 1 for item in quarantine.list())
        text = config.fleet_file.read_text().replace("fixed: {", "second: {operator: viettel, access: fixed}, fixed: {")
        more = "  hn-99: {province: ha_noi, links: {fixed: {operator: viettel, access: fixed}}}\n"
        config.fleet_file.write_text(text + more)
        outcomes = replay(config, [*numbers, 777], {**TASKS, "ruler": TASKS["gauge"]})
        assert outcomes[777].kind == "missing"
        assert sorted(outcome.kind for outcome in outcomes.values()) == [
            "kept",
            "missing",
            "stored",
            "stored",
            "stored",
        ]
        assert quarantine.reasons() == {"foreign_agent": 1}
        quarantine.close()
    assert len(rows(influxd)) == 4


def test_what_the_database_refuses_is_quarantined(
    broker: Mosquitto, influxd: Influxd, agent: AgentClient, tmp_path: Path
) -> None:
    """A field that has another type in the database costs only the results that have it, and they can be replayed."""
    config = controller_config(tmp_path, broker.port, influxd.url)
    change_database(influxd, "CREATE DATABASE fleet")
    httpx.post(
        f"{influxd.url}/write", params={"db": "fleet"}, content=b"gauge server=1i 1767225600123456789"
    ).raise_for_status()
    with running(config) as controller:
        agent.send(report(result(0), result(1, values={"packets_sent": 1, "server": "text"}), result(2)))
        agent.wait_for_receipt(3)
        assert (controller.counters().stored, controller.counters().quarantined) == (2, 1)
        assert "field type conflict" in items(config)["refused_by_database"]
        assert [row["sequence"] for row in rows(influxd)] == [1, 3]
        # 1.x keeps the type of a field for as long as its shard lives, so only this mends it.
        change_database(influxd, "DROP DATABASE fleet")
        change_database(influxd, "CREATE DATABASE fleet")
        quarantine = Quarantine(config.quarantine_dir, config.quarantine)
        (number,) = quarantine.ids()
        assert replay(config, [number], TASKS)[number].detail == "1 stored"
        assert quarantine.ids() == []
        quarantine.close()
    assert [row["sequence"] for row in rows(influxd)] == [2]


def test_a_missing_database_holds_everything_until_it_is_there(
    broker: Mosquitto, influxd: Influxd, agent: AgentClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """404 drops nothing and sends no receipt; it is told once; after the fix all is stored."""
    with running(controller_config(tmp_path, broker.port, influxd.url)) as controller:
        agent.send(report(result()))
        agent.wait_for_receipt(1)
        change_database(influxd, "DROP DATABASE fleet")
        agent.send(report(result(1), first=2))
        wait_until(lambda: controller._patience.attempts_failed >= 2, "two tries")
        assert "database not found" in (controller.counters().trouble or "")
        assert agent.contiguous() == 1
        change_database(influxd, "CREATE DATABASE fleet")
        agent.wait_for_receipt(2)
    assert [row["sequence"] for row in rows(influxd)] == [2]
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
        'database refused the controller, nothing is dropped, somebody must act: 404: database not found: "fleet"'
    ]


def test_a_killed_database_costs_only_time(
    broker: Mosquitto, influxd: Influxd, agent: AgentClient, tmp_path: Path
) -> None:
    """InfluxDB is killed in mid-stream and restarted: every result is there once, and every receipt is sent."""
    with running(controller_config(tmp_path, broker.port, influxd.url)):
        for number in range(100):
            if number == 30:
                influxd.kill()
            if number == 60:
                influxd.start()
            agent.send(report(*(result(number * 5 + index) for index in range(5)), first=number * 5 + 1))
        agent.wait_for_receipt(500)
    assert sorted(row["sequence"] for row in rows(influxd)) == list(range(1, 501))


def test_a_killed_controller_loses_nothing(
    broker: Mosquitto, influxd: Influxd, agent: AgentClient, tmp_path: Path
) -> None:
    """SIGKILL in mid-stream, three times: what was sent meanwhile and what was in hand is stored, once."""
    process = start_controller(tmp_path, broker.port, influxd.url)
    wait_until_ready(agent)
    try:
        for number in range(400):
            agent.send(report(*(result(number * 5 + index) for index in range(5)), first=number * 5 + 1))
            if number % 100 == 50:
                process.kill()
                process.wait()
                process = start_controller(tmp_path, broker.port, influxd.url)
        wait_until(lambda: len(rows(influxd)) == 2000, "all results", 60)
        # A restarted controller knows no more than the floor: the agent sends again what has no receipt.
        agent.send(report(*(result(1990 + index) for index in range(10)), first=1991, floor=1991))
        agent.wait_for_receipt(2000)
    finally:
        process.kill()
        process.wait()
    assert sorted(row["sequence"] for row in rows(influxd)) == list(range(1, 2001))


def test_a_stopped_controller_gives_back_what_it_holds(
    broker: Mosquitto, influxd: Influxd, agent: AgentClient, tmp_path: Path
) -> None:
    """SIGTERM while the database is away ends it quickly and cleanly; the next one stores what it held."""
    process = start_controller(tmp_path, broker.port, influxd.url)
    wait_until_ready(agent)
    agent.send(report(result()))
    agent.wait_for_receipt(1)
    influxd.kill()
    agent.send(report(result(1), first=2, floor=2))
    wait_until(lambda: b"storing was interrupted" in (tmp_path / "controller.log").read_bytes(), "the trouble")
    process.terminate()
    assert process.wait(20) == 0
    influxd.start()
    with running(controller_config(tmp_path, broker.port, influxd.url)):
        agent.wait_for_receipt(2)
    assert len(rows(influxd)) == 2


def test_a_new_fleet_file_is_read_on_sighup(
    broker: Mosquitto, influxd: Influxd, agent: AgentClient, tmp_path: Path
) -> None:
    """A bad file keeps the old fleet and says why; a good one is in force at once; the process goes on."""
    process = start_controller(tmp_path, broker.port, influxd.url)
    log = tmp_path / "controller.log"
    fleet_file = tmp_path / "fleet.yaml"
    good = fleet_file.read_text()
    try:
        wait_until_ready(agent)
        fleet_file.write_text("probes: [this is no fleet]\n")
        os.kill(process.pid, signal.SIGHUP)
        wait_until(lambda: b"the old one stays in force" in log.read_bytes(), "the refusal")
        agent.send(report(result()))
        agent.wait_for_receipt(1)
        fleet_file.write_text(good.replace("fixed: {", "second: {operator: viettel, access: fixed}, fixed: {"))
        os.kill(process.pid, signal.SIGHUP)
        wait_until(lambda: b"fleet file was read again" in log.read_bytes(), "the new fleet")
        agent.send(report(result(1, link="second"), first=2))
        agent.wait_for_receipt(2)
    finally:
        process.kill()
        process.wait()
    assert [row["link"] for row in rows(influxd, "packets_sent, link")] == ["fixed", "second"]


def test_a_changed_fleet_file_is_read_without_being_told(
    broker: Mosquitto, influxd: Influxd, agent: AgentClient, tmp_path: Path
) -> None:
    """A link that is new in the fleet file is known some seconds later."""
    process = start_controller(tmp_path, broker.port, influxd.url)
    log = tmp_path / "controller.log"
    fleet_file = tmp_path / "fleet.yaml"
    try:
        wait_until_ready(agent)
        good = fleet_file.read_text()
        fleet_file.write_text(good.replace("fixed: {", "second: {operator: viettel, access: fixed}, fixed: {"))
        wait_until(lambda: b"fleet file was read again" in log.read_bytes(), "the new fleet")
        agent.send(report(result(1, link="second")))
        agent.wait_for_receipt(1)
    finally:
        process.kill()
        process.wait()
    assert [row["link"] for row in rows(influxd, "packets_sent, link")] == ["second"]


def test_a_wiped_broker_gets_its_instructions_back(broker: Mosquitto, influxd: Influxd, tmp_path: Path) -> None:
    """After the broker lost its disk, every agent's instruction is retained there again."""
    with running(controller_config(tmp_path, broker.port, influxd.url)) as controller:
        broker.kill()
        broker.wipe()
        broker.start()
        wait_until(lambda: controller.counters().connections >= 2, "the second connection")
        newcomer = AgentClient(broker.port)
        wait_until(lambda: bool(newcomer.instructions), "the instruction")
        newcomer.close()
    told = json.loads(newcomer.instructions[0])
    assert told["agent_id"] == AGENT
    assert {schedule["name"] for schedule in told["schedules"]} == {"rest"}


def test_a_full_quarantine_disk_holds_only_its_own_receipts_back(
    broker: Mosquitto, influxd: Influxd, agent: AgentClient, tmp_path: Path
) -> None:
    """What cannot be kept is not receipted, so its probe reports it again; what is good goes on meanwhile."""
    config = controller_config(tmp_path, broker.port, influxd.url)
    spoiled = report(result(), result(1, task="x" * 50_000))
    with running(config) as controller:
        database = controller._quarantine._database
        database.execute("PRAGMA max_page_count = 8")
        agent.send(spoiled)
        agent.send(report(result(2), first=3))
        wait_until(lambda: any(receipt.beyond == ((3, 3),) for receipt in agent.receipts), "the good one's receipt")
        assert agent.contiguous() == 0
        assert controller.counters().unkept == 1
        database.execute("PRAGMA max_page_count = 100000")
        agent.send(spoiled)
        agent.wait_for_receipt(3)
    assert set(items(config)) == {"unknown_task"}
    assert [row["sequence"] for row in rows(influxd)] == [1, 3]


def test_serve_in_a_thread(
    broker: Mosquitto, influxd: Influxd, agent: AgentClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller that is no process of its own is told when it is ready, and ends it by an event."""
    config = controller_config(tmp_path, broker.port, influxd.url)
    for name, task in TASKS.items():
        monkeypatch.setitem(probe.tasks.TASKS, name, task)
    stop, ready = threading.Event(), threading.Event()
    thread = threading.Thread(target=serve, args=(config, stop, ready.set))
    thread.start()
    try:
        assert ready.wait(20)
        agent.send(report(result()))
        agent.wait_for_receipt(1)
    finally:
        stop.set()
        thread.join(20)
    assert not thread.is_alive()
    assert len(rows(influxd)) == 1


def test_a_controller_that_cannot_start_says_why(tmp_path: Path) -> None:
    """Without its fleet file, or with a task that cannot be stored, it ends before it connects."""
    config = controller_config(tmp_path, 1, "http://127.0.0.1:1")
    config.fleet_file.unlink()
    with pytest.raises(ControllerError):
        serve(config)
    config = controller_config(tmp_path, 1, "http://127.0.0.1:1")
    with pytest.raises(ConfigError, match="Big Name"):
        Controller(config, {**TASKS, "Big Name": TASKS["gauge"]})
