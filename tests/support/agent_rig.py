"""A real `fleet-probe run` against a real broker, with a stand-in for the controller that a test drives."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from probe_file import probe_toml

from fleet_controller.lab.services import Mosquitto, Service, answers, free_port
from probe.messages import (
    Action,
    Command,
    Instruction,
    Message,
    Peer,
    Progress,
    Receipt,
    Report,
    Result,
    Schedule,
    Status,
    encode,
    topic,
)

AGENT_ID = "hanoi-1"
WAIT_S = 30.0


class Collector:
    """Hears everything that one agent says; sends receipts, instructions and commands."""

    def __init__(self, port: int, agent_id: str = AGENT_ID) -> None:
        self.agent_id = agent_id
        self.results: list[Result] = []
        self.statuses: list[Status] = []
        self.progress: list[Progress] = []
        self._changed = threading.Condition()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5, client_id="collector")
        self._client.on_message = self._on_message
        self._client.on_connect = self._on_connect
        self._connected = threading.Event()
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._connected.wait(WAIT_S)

    def close(self) -> None:
        """Leave."""
        self._client.disconnect()
        self._client.loop_stop()

    def instruct(self, instruction: Instruction | bytes) -> None:
        """Publish the retained instruction."""
        payload = instruction if isinstance(instruction, bytes) else encode(instruction)
        self._client.publish(topic(self.agent_id, "instruction"), payload, qos=1, retain=True).wait_for_publish(WAIT_S)

    def command(self, command: Command | bytes) -> None:
        """Send a command."""
        payload = command if isinstance(command, bytes) else encode(command)
        self._client.publish(topic(self.agent_id, "command"), payload, qos=1).wait_for_publish(WAIT_S)

    def wait_for(self, true: Callable[[], bool], what: str, time_out_s: float = WAIT_S) -> None:
        """Wait until what was heard makes it so."""
        with self._changed:
            assert self._changed.wait_for(true, time_out_s), f"not within {time_out_s:g} s: {what}; {self}"

    def wait_for_result(self, wanted: Callable[[Result], bool], what: str, time_out_s: float = WAIT_S) -> Result:
        """The first result heard that is wanted."""
        self.wait_for(lambda: any(wanted(result) for result in self.results), what, time_out_s)
        return next(result for result in self.results if wanted(result))

    def wait_for_status(self, wanted: Callable[[Status], bool], what: str, time_out_s: float = WAIT_S) -> Status:
        """Wait until the last status heard is wanted."""
        self.wait_for(lambda: bool(self.statuses) and wanted(self.statuses[-1]), what, time_out_s)
        return self.statuses[-1]

    def __repr__(self) -> str:
        """What was heard so far, for a failed test."""
        return f"{len(self.results)} results, last status {self.statuses[-1:]}"

    def _on_connect(self, client: mqtt.Client, *_: Any) -> None:
        client.subscribe([(topic(self.agent_id, leaf), 1) for leaf in ("report", "status", "progress")])
        self._connected.set()

    def _on_message(self, _client: mqtt.Client, _userdata: Any, message: mqtt.MQTTMessage) -> None:
        leaf = message.topic.rpartition("/")[2]
        with self._changed:
            if leaf == "report":
                self._take(msgspec.json.decode(message.payload, type=Report))
            elif leaf == "status":
                self.statuses.append(msgspec.json.decode(message.payload, type=Status))
            else:
                self.progress.append(msgspec.json.decode(message.payload, type=Progress))
            self._changed.notify_all()

    def _take(self, report: Report) -> None:
        self.results += [msgspec.json.decode(entry.result, type=Result) for entry in report.entries]
        taken = tuple((entry.sequence, entry.sequence) for entry in report.entries)
        receipt = Receipt(
            agent_id=report.agent_id,
            sequence_space=report.sequence_space,
            contiguous=report.sequence_floor - 1,
            beyond=taken,
        )
        self._client.publish(topic(report.agent_id, "receipt"), encode(receipt), qos=1)


class AgentRig:
    """One agent's folder, its broker, and the controller's stand-in."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.state_dir = folder / "state"
        self.config = folder / "probe.toml"
        self.broker = Mosquitto(folder / "mosquitto")
        self.agent = self.child("agent", "run", "--config", str(self.config))
        self.config.write_text(probe_toml(AGENT_ID, self.state_dir, self.broker.port), encoding="utf-8")
        self.http_port, self.stamp_port = free_port(), free_port(kind=socket.SOCK_DGRAM)
        self.peer = self.child(
            "peer",
            *("peer", "--host", "127.0.0.1"),
            *("--http-port", str(self.http_port), "--stamp-port", str(self.stamp_port)),
            ready=lambda: answers("127.0.0.1", self.http_port),
        )

    def child(self, name: str, *arguments: str, ready: Callable[[], bool] = lambda: True) -> Service:
        """A `fleet-probe` process."""
        return Service(self.folder / name, [sys.executable, "-m", "probe.cli", *arguments], ready)

    def stop(self) -> None:
        """Stop whatever runs."""
        for service in (self.agent, self.peer, self.broker):
            service.stop()

    def instruction(self, *schedules: Schedule, revision: str = "one") -> Instruction:
        """An instruction for this agent, with the peer `near`."""
        near = Peer(name="near", host="127.0.0.1", http_port=self.http_port, stamp_port=self.stamp_port)
        return Instruction(
            agent_id=AGENT_ID,
            revision=revision,
            issued_unix_ns=time.time_ns(),
            peers=(near, Peer(name="evil", host="192.0.2.1")),
            schedules=schedules,
        )

    def log(self) -> str:
        """What the agent logged."""
        return self.agent.log_file.read_text(encoding="utf-8")

    def end_with(self, number: signal.Signals) -> float:
        """Signal the agent and wait for its clean end; returns the seconds that it took."""
        process = self.agent._process
        assert process is not None
        started = time.monotonic()
        os.kill(process.pid, number)
        assert process.wait(20) == 0, self.log()
        return time.monotonic() - started


@contextmanager
def collecting(port: int) -> Iterator[Collector]:
    """A collector that leaves in the end."""
    collector = Collector(port)
    try:
        yield collector
    finally:
        collector.close()


def fleet_probe(*arguments: str, time_out_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run `fleet-probe` to its end."""
    command: Sequence[str] = [sys.executable, "-m", "probe.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=time_out_s)


@contextmanager
def serving_peer(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A `fleet-probe peer` on free ports, and its HTTP port. The caller ends it; what is left is killed."""
    command = [sys.executable, "-m", "probe.cli", "peer", "--host", "127.0.0.1"]
    command += ["--http-port", "0", "--stamp-port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as serving:
        try:
            assert serving.stdout is not None
            said = re.search(r"HTTP port (\d+)", serving.stdout.readline())
            assert said is not None
            yield serving, int(said[1])
        finally:
            serving.kill()


def often(
    *actions: Action, period_s: float = 1.0, links: tuple[str, ...] = ("fixed0",), name: str = "often"
) -> Schedule:
    """A schedule of every second on one link."""
    return Schedule(name=name, period_s=period_s, actions=actions, links=links)


def stamp(**parameters: Any) -> Action:
    """A short round trip to the peer `near`."""
    settings = {"packets": 2, "interval_s": 0.02, "time_out_s": 1.0, **parameters}
    return Action(name="stamp", task="round_trip", peers=("near",), parameters=settings)


def decoded(message: Message | str) -> Any:
    """JSON as Python has it."""
    return json.loads(message if isinstance(message, str) else encode(message))
