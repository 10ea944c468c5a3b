"""Publishing while the spool fails: nothing is lost, nothing is sent twice for it, and the log does not repeat it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
from mqtt_parts import QUICK, Agent, Relay, WatchedSpool, desk_at, settings_of, told

from fleet_controller.lab.services import Mosquitto
from probe.errors import SpoolError
from probe.messages import Receipt
from probe.publish import publisher
from probe.spool.spool import Batch


class FailingSpool(WatchedSpool):
    """The real spool on a disk that fails: each call raises as long as there is a fault."""

    fault: Exception | None = None
    failed = 0

    def batch(self, skip: Sequence[tuple[int, int]], results_max: int, bytes_max: int) -> Batch | None:
        """As the spool."""
        self._fail()
        return super().batch(skip, results_max, bytes_max)

    def settle(self, receipt: Receipt) -> int:
        """As the spool."""
        self._fail()
        return super().settle(receipt)

    def set_aside(self, space: str, sequences: Sequence[int], cause: str) -> int:
        """As the spool."""
        self._fail()
        return super().set_aside(space, sequences, cause)

    def _fail(self) -> None:
        fault = self.fault  # the test mends the disk from another thread
        if fault is not None:
            self.failed += 1
            self.changed()
            raise fault


def failing(agent: Agent) -> FailingSpool:
    """The agent with such a spool."""
    agent.outbox = FailingSpool(agent.spool)
    agent.publisher._outbox = agent.outbox
    return agent.outbox


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A spool that failed is asked again at once."""
    monkeypatch.setattr(publisher, "_OUTBOX_PAUSE_S", 0.02)


async def test_a_receipt_waits_for_the_spool(
    broker: Mosquitto, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A receipt that meets a full disk is settled when it is mended: what it names does not go over the line again."""
    agent = Agent(tmp_path, settings_of(broker))
    spool = failing(agent)
    async with desk_at(broker, receipting=False) as desk, agent:
        agent.add(30)
        await desk.until(lambda: len(desk.seen) == 30)
        spool.fault = SpoolError("the disk is full")
        desk.send_receipt(agent.spool.space)
        await spool.until(lambda: spool.failed >= 3)
        spool.fault = None
        await agent.until_empty()
        assert set(desk.seen.values()) == {1}
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1


@pytest.mark.parametrize("fault", [SpoolError("the disk is full"), RuntimeError("a fault of the program")])
async def test_results_wait_for_the_spool(broker: Mosquitto, tmp_path: Path, fault: Exception) -> None:
    """What cannot be read is read later, whatever was raised; the connection lives on."""
    agent = Agent(tmp_path, settings_of(broker))
    spool = failing(agent)
    async with desk_at(broker) as desk, agent:
        await desk.until(lambda: desk.statuses)
        spool.fault = fault
        agent.add(10)
        await spool.until(lambda: spool.failed >= 3)
        spool.fault = None
        await agent.until_empty()
        assert len(desk.statuses) == 1
        assert agent.publisher.alive


async def test_what_no_broker_takes_is_set_aside_when_the_spool_can(tmp_path: Path) -> None:
    """A result on which the broker hangs up is remembered until it can be set aside: no connection more is lost."""
    with Mosquitto(tmp_path / "strict", settings="message_size_limit 3000\n") as broker:
        agent = Agent(tmp_path, settings_of(broker))
        spool = failing(agent)
        async with desk_at(broker) as desk, agent:
            await desk.until(lambda: desk.statuses)
            set_aside = agent.spool.set_aside
            connections: list[int] = []

            def set_aside_once_it_can(space: str, sequences: Sequence[int], cause: str) -> int:
                connections.append(len(desk.statuses))
                if spool.failed < 3:
                    spool.failed += 1
                    raise SpoolError("the disk is full")
                return set_aside(space, sequences, cause)

            agent.spool.set_aside = set_aside_once_it_can  # type: ignore[method-assign]  # a disk that fails for a while
            agent.add(1, text_bytes=5000)
            await spool.until(lambda: agent.spool.status().set_aside == 1)
            agent.add(3)
            await agent.until_empty()
            # Each connection brings a status; the one that follows the last hang-up may come only now.
            assert len(desk.statuses) <= connections[0] + 1
        assert spool.failed == 3


async def test_a_goodbye_that_nobody_confirms_takes_its_time_and_no_more(
    broker: Mosquitto, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A line that swallows everything cannot hold the agent's end; the log says what the broker will think."""
    async with desk_at(broker) as desk, Relay(broker) as relay:
        pace = dataclasses.replace(QUICK, stop_s=0.3)
        async with Agent(tmp_path, settings_of(broker, relay.port), pace=pace) as agent:
            await desk.until(lambda: desk.statuses)
            relay.silent = True
            started_s = agent.clock.monotonic_s()
            await agent.publisher.stop()
            assert agent.clock.monotonic_s() - started_s < 5
            assert not agent.publisher.alive
            await agent.publisher.stop()  # a second one has nothing to do
    assert told(caplog, "it will call this probe lost")
