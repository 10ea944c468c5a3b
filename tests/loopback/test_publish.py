from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from mqtt_parts import AGENT_ID, QUICK, Agent, Desk, Relay, desk_at, settings_of, told

from fleet_controller.lab.services import Mosquitto, die_with_parent
from probe import config
from probe.messages import AgentState, Progress, Receipt


async def test_results_leave_and_only_receipts_delete(broker: Mosquitto, tmp_path: Path) -> None:
    """Everything arrives once, in few reports; nothing is deleted before its receipt and everything after it."""
    async with desk_at(broker, receipting=False) as desk, Agent(tmp_path, settings_of(broker)) as agent:
        agent.add(1200)
        await desk.until(lambda: len(desk.seen) == 1200)
        assert agent.spool.status().results == 1200
        desk.send_receipt(agent.spool.space)
        await agent.until_empty()
        desk.receipting = True
        agent.add(5)
        await agent.until_empty()
        assert set(desk.seen.values()) == {1}
        assert max(desk.report_sizes) <= 500
        assert max(desk.report_bytes) <= 200 * 1024


async def test_what_gets_no_receipt_goes_again(broker: Mosquitto, tmp_path: Path) -> None:
    """Without a receipt a report is offered again after a while; the repeat's receipt deletes it."""
    pace = dataclasses.replace(QUICK, resend_first_s=1.0)
    async with desk_at(broker, receipting=False) as desk, Agent(tmp_path, settings_of(broker), pace=pace) as agent:
        agent.add(10)
        await desk.until(lambda: desk.seen and min(desk.seen.values()) >= 2)
        assert agent.spool.status().results == 10
        desk.receipting = True
        await agent.until_empty()


async def test_a_broker_that_lost_its_disk_costs_nothing(broker: Mosquitto, tmp_path: Path) -> None:
    """Killed and wiped with everything accepted and nothing receipted: all goes again at once."""
    async with desk_at(broker, receipting=False) as desk, Agent(tmp_path, settings_of(broker)) as agent:
        agent.add(50)
        await desk.until(lambda: len(desk.seen) == 50)
        desk.seen.clear()
        desk.receipting = True
        await asyncio.to_thread(broker.kill)
        agent.add(50)
        broker.wipe()
        await asyncio.to_thread(broker.start)
        await agent.until_empty()
        assert len(desk.seen) == 100


async def test_without_a_subscriber_nothing_is_lost(
    broker: Mosquitto, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """PUBACK 0x10 means that the broker threw it away: it stays, is said once, and goes when somebody listens."""
    async with Agent(tmp_path, settings_of(broker)) as agent:
        agent.add(20)
        async with desk_at(broker, subscribing=False) as listener:
            await listener.until(lambda: AgentState.ONLINE in listener.states())
            await agent.until(lambda: told(caplog, "does not take reports: No matching subscribers"))
        assert agent.spool.status().results == 20
        async with desk_at(broker) as desk:
            await agent.until_empty()
            assert len(desk.seen) == 20
    assert len(told(caplog, "does not take reports")) == 1


async def test_a_right_that_is_missing_loses_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A report that the broker's rules refuse stays until somebody mends the rules."""
    rules = tmp_path / "acl"
    rules.write_text("topic readwrite fleet/v1/+/+/status\ntopic read #\n")
    with Mosquitto(tmp_path / "mosquitto", settings=f"acl_file {rules}\n") as broker:
        async with desk_at(broker) as desk, Agent(tmp_path, settings_of(broker)) as agent:
            agent.add(20)
            await agent.until(lambda: told(caplog, "does not take reports: Not authorized"))
            assert agent.spool.status().results == 20
            rules.write_text("topic readwrite #\n")
            assert broker.pid is not None
            os.kill(broker.pid, signal.SIGHUP)
            await agent.until_empty()
            assert len(desk.seen) == 20


def receipt_of(space: str, contiguous: int, agent_id: str = AGENT_ID) -> bytes:
    """A receipt on the wire."""
    return msgspec.json.encode(Receipt(agent_id=agent_id, sequence_space=space, contiguous=contiguous))


async def test_wrong_receipts_delete_nothing(broker: Mosquitto, tmp_path: Path) -> None:
    """Foreign spaces, other agents, impossible numbers and garbage are passed over, and the true one still works."""
    async with desk_at(broker, receipting=False) as desk, Agent(tmp_path, settings_of(broker)) as agent:
        agent.add(10)
        await desk.until(lambda: len(desk.seen) == 10)
        space = agent.spool.space
        wrong = (
            receipt_of("bbbbbbbbbbbb-00000000", 10),
            receipt_of(space, 10, "probe-2"),
            receipt_of(space, 5000),
            receipt_of(space, 2**80),
            b"",
            b"\xff\x00",
            b"[1,2]",
            b'{"agent_id": "probe-1"}',
        )
        for payload in wrong:
            desk.send("receipt", payload)
        desk.send("command", b"after them")
        await agent.until(lambda: agent.commands)
        agent.add(1)
        await desk.until(lambda: len(desk.seen) == 11)
        assert agent.spool.status().results == 11
        for _ in range(3):
            desk.send_receipt(space)
        await agent.until_empty()


async def test_a_fault_of_the_agent_does_not_end_the_loop(
    broker: Mosquitto, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler that raises is logged; commands and results go on over the same connection."""
    async with desk_at(broker) as desk, Agent(tmp_path, settings_of(broker)) as agent:
        await desk.until(lambda: desk.statuses)
        desk.send("instruction", b"raise")
        desk.send("command", b"measure")
        await agent.until(lambda: agent.commands)
        agent.add(10)
        await agent.until_empty()
        assert desk.states() == [AgentState.ONLINE]
    assert len(told(caplog, "could not be handled")) == 1


async def test_the_clients_own_thread_may_fail(broker: Mosquitto, tmp_path: Path) -> None:
    """An exception in paho's loop ends that connection and nothing else."""
    async with desk_at(broker) as desk, Agent(tmp_path, settings_of(broker)) as agent:
        await desk.until(lambda: desk.statuses)

        def fail(_timeout: float) -> None:
            raise ValueError("a fault of the library")

        session = agent.publisher._session
        assert session is not None
        session._client.loop = fail  # type: ignore[method-assign, assignment]  # a fault planted in the library
        agent.add(10)
        await desk.until(lambda: len(desk.statuses) >= 2)
        await agent.until_empty()


async def test_a_thread_that_died_silently_is_noticed(
    broker: Mosquitto, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Even a thread that ends without a word is replaced: the agent's own watch sees it."""
    async with desk_at(broker) as desk, Agent(tmp_path, settings_of(broker, keepalive_s=1)) as agent:
        await desk.until(lambda: desk.statuses)
        session = agent.publisher._session
        assert session is not None
        session._post = lambda *_: None  # type: ignore[method-assign]  # it can say nothing any more
        session.abandon()
        await agent.until(lambda: told(caplog, "the thread of the MQTT client has died"))
        agent.add(10)
        await agent.until_empty()


async def test_a_half_open_line_is_noticed(broker: Mosquitto, tmp_path: Path) -> None:
    """A path that swallows everything and closes nothing is given up within a few keepalives."""
    async with (
        desk_at(broker) as desk,
        Relay(broker) as relay,
        Agent(tmp_path, settings_of(broker, relay.port, keepalive_s=1)) as agent,
    ):
        await desk.until(lambda: desk.statuses)
        relay.silent = True
        agent.add(10)
        await agent.until(lambda: not agent.publisher.connected)
        relay.silent = False
        await agent.until_empty()
        assert len(desk.seen) == 10


async def test_an_idle_connection_is_kept(broker: Mosquitto, tmp_path: Path) -> None:
    """Answered pings are enough: a quiet probe does not reconnect."""
    async with desk_at(broker) as desk, Agent(tmp_path, settings_of(broker, keepalive_s=1)) as agent:
        await desk.until(lambda: desk.statuses)
        session = agent.publisher._session
        await asyncio.sleep(4)  # four keepalives of nothing are what this test is about
        assert agent.publisher._session is session
        assert agent.publisher.connected


async def test_reports_fit_the_brokers_packets(tmp_path: Path) -> None:
    """A broker with a small packet size, announced in CONNACK, gets smaller reports."""
    with Mosquitto(tmp_path / "mosquitto", settings="max_packet_size 20000\n") as broker:
        async with desk_at(broker) as desk, Agent(tmp_path, settings_of(broker)) as agent:
            agent.add(100, text_bytes=1000)
            await agent.until_empty()
            assert set(desk.seen.values()) == {1}
            assert max(desk.report_bytes) <= 20000
            assert agent.spool.status().set_aside == 0


async def test_a_report_that_the_broker_hangs_up_on(tmp_path: Path) -> None:
    """A limit that is not announced: reports are halved until they pass, and what never can is set aside."""
    with Mosquitto(tmp_path / "mosquitto", settings="message_size_limit 20000\n") as broker:
        async with desk_at(broker) as desk, Agent(tmp_path, settings_of(broker)) as agent:
            agent.add(10, text_bytes=1000)
            agent.add(1, text_bytes=30000)
            agent.add(10, text_bytes=1000)
            await agent.until_empty()
            assert len(desk.seen) == 20
            assert agent.spool.status().set_aside == 1


async def test_the_controllers_words_arrive(broker: Mosquitto, tmp_path: Path) -> None:
    """The retained instruction comes at each connection; commands come once, also those sent while away."""
    async with desk_at(broker) as desk:
        desk.send("instruction", b"plan 1", retain=True)
        async with Agent(tmp_path, settings_of(broker)) as agent:
            await agent.until(lambda: agent.instructions == [b"plan 1"])
            desk.send("command", b"one")
            await agent.until(lambda: agent.commands == [b"one"])
        desk.send("command", b"two")
        async with Agent(tmp_path, settings_of(broker)) as agent:
            await agent.until(lambda: agent.instructions == [b"plan 1"] and agent.commands == [b"two"])


async def test_progress_is_for_those_who_look(broker: Mosquitto, tmp_path: Path) -> None:
    """Progress goes out while connected and is dropped, counted, while not."""
    word = Progress(agent_id=AGENT_ID, task="round_trip", state="started", at_unix_ns=1)
    async with desk_at(broker) as desk:
        agent = Agent(tmp_path, settings_of(broker))
        agent.publisher.publish_progress(word)
        agent.publisher.notify()  # before the start too
        agent.publisher.publish_status()
        assert agent.publisher.dropped_progress == 1
        async with agent:
            await desk.until(lambda: desk.statuses)
            for seen in range(1, 60):
                agent.publisher.publish_progress(word)
                await desk.until(at_least(desk, seen))
            assert agent.publisher.dropped_progress == 1


def at_least(desk: Desk, seen: int) -> Callable[[], bool]:
    """Whether as much progress was seen."""
    return lambda: desk.progress >= seen


async def test_a_clean_stop_says_so(broker: Mosquitto, tmp_path: Path) -> None:
    """The retained status is `stopped`, and no will follows."""
    async with Agent(tmp_path, settings_of(broker)), desk_at(broker) as desk:
        await desk.until(lambda: desk.statuses)
    async with desk_at(broker) as desk:
        await desk.until(lambda: any(retained for _, retained in desk.statuses))
        assert desk.states()[-1] is AgentState.STOPPED
        assert AgentState.LOST not in desk.states()


CHILD = """
import asyncio, sys
from pathlib import Path
from mqtt_parts import Agent
from probe import config

async def main():
    agent = Agent(Path(sys.argv[1]), config.Broker(host="127.0.0.1", port=int(sys.argv[2])))
    await agent.publisher.start()
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_killed_agent_is_called_lost(broker: Mosquitto, tmp_path: Path) -> None:
    """After kill -9 the broker says it, retained, once its delay is over."""
    support = Path(__file__).parents[1] / "support"
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CHILD, str(tmp_path), str(broker.port)),
        env={**os.environ, "PYTHONPATH": f"{support}{os.pathsep}{support.parents[1]}"},
        preexec_fn=die_with_parent,
    )
    try:
        async with desk_at(broker) as desk:
            await desk.until(lambda: desk.states() == [AgentState.ONLINE])
            child.kill()
            await desk.until(lambda: desk.states() == [AgentState.ONLINE, AgentState.LOST])
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


async def test_a_stop_without_a_broker_is_quick(tmp_path: Path) -> None:
    """There is nobody to say goodbye to."""
    unreachable = config.Broker(host="127.0.0.1", port=9)
    async with asyncio.timeout(5), Agent(tmp_path, unreachable) as agent:
        agent.add(1)
    assert not agent.publisher.connected


async def test_another_line_is_tried(broker: Mosquitto, tmp_path: Path) -> None:
    """Results leave over any line that works: a source address that fails gives way to the next."""
    addresses = ("192.0.2.1", "127.0.0.2")
    async with desk_at(broker), Agent(tmp_path, settings_of(broker), bind_addresses=addresses) as agent:
        agent.add(1)
        await agent.until_empty()


async def test_wrong_credentials_are_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log says what to mend, once, however often it is tried; mended, results flow without a restart."""
    users, password = tmp_path / "users", tmp_path / "password"
    users.write_text("probe-1:right\n")
    password.write_text("wrong\n")
    hash_passwords = await asyncio.create_subprocess_exec("mosquitto_passwd", "-U", str(users))
    assert await hash_passwords.wait() == 0
    settings = f"allow_anonymous false\npassword_file {users}\n"
    with Mosquitto(tmp_path / "mosquitto", settings=settings) as broker:
        credentials = config.Broker(host=broker.host, port=broker.port, username="probe-1", password_file=str(password))
        async with Agent(tmp_path, credentials) as agent:
            await agent.until(lambda: told(caplog, "check username and password_file"))
            attempts = agent.publisher._attempts
            await agent.until(lambda: agent.publisher._attempts >= attempts + 3)
            assert len(told(caplog, "Cannot connect")) == 1
            password.write_text("right\n")
            await agent.until(lambda: agent.publisher.connected)
