"""A controller's folder for the tests of its commands, and agents that say what a test wants."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from fleet_controller.config import ControllerConfig, load
from fleet_controller.fleet.load import load_fleet
from fleet_controller.lab.services import Influxd, Mosquitto
from fleet_controller.store.database import Store
from fleet_controller.validate import Validator
from probe.messages import (
    AgentState,
    ClockReading,
    ClockState,
    Command,
    Entry,
    Report,
    Result,
    Status,
    encode,
    topic,
)
from probe.tasks import TASKS

TIME_OUT_S = 10.0
FLEET = """\
operators:
  vnpt: {name: VNPT}
peers:
  near: {host: 127.0.0.1, scope: domestic}
schedules:
  pulse:
    period_s: 10
    actions:
      - {task: host}
      - {task: round_trip, peers: [near]}
probes:
"""
PROBE = "  %s: {province: ha_noi, links: {fixed: {operator: vnpt, access: fixed}}}\n"


class Site:
    """A configuration and a fleet file in one folder."""

    def __init__(self, folder: Path, broker: Mosquitto, influxd: Influxd) -> None:
        self.folder = folder
        self.config_file = folder / "controller.toml"
        self.fleet_file = folder / "fleet.yaml"
        self.config_file.write_text(
            f'state_dir = "state"\n[broker]\nhost = "{broker.host}"\nport = {broker.port}\n'
            f'[influxdb]\nurl = "{influxd.url}"\n'
        )

    @property
    def config(self) -> ControllerConfig:
        """The configuration as it stands."""
        return load(self.config_file)

    def write_fleet(self, *agent_ids: str, period_s: int = 10) -> None:
        """A fleet of these probes."""
        text = FLEET.replace("period_s: 10", f"period_s: {period_s}") + "".join(PROBE % name for name in agent_ids)
        self.fleet_file.write_text(text if agent_ids else text.replace("probes:\n", ""))

    def store_result(self, agent_id: str, *, age_s: float = 0.0, command: Command | None = None) -> None:
        """Put one result of `host` into the database, by the way that real ones take."""
        result = Result(
            task="host",
            task_version=TASKS["host"].version,
            action="host",
            schedule="pulse",
            start_unix_ns=time.time_ns() - round(age_s * 1e9),
            clock=ClockReading(state=ClockState.SYNCHRONISED),
            command_id=command.command_id if command is not None else None,
            values={"clock_synchronised": True},
        )
        report = Report(
            agent_id=agent_id,
            sequence_space="boot-1",
            sequence_floor=1,
            entries=(Entry(sequence=1, result=msgspec.Raw(encode(result))),),
            sent_unix_ns=time.time_ns(),
        )
        verdict = Validator(load_fleet(self.fleet_file), TASKS).validate(topic(agent_id, "report"), encode(report))
        assert verdict.rejected == []
        store = Store(self.config.influxdb, TASKS)
        try:
            assert store.write(verdict.accepted) == []
        finally:
            store.close()


class FakeAgent:
    """A connection with an agent's Last Will, which says what it is told to say."""

    def __init__(self, broker: Mosquitto, agent_id: str) -> None:
        self.agent_id = agent_id
        self._changed = threading.Condition()
        self._events: list[Any] = []
        self.commands: list[Command] = []
        self._client = Client(CallbackAPIVersion.VERSION2, agent_id, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.will_set(topic(agent_id, "status"), self._status(AgentState.LOST), qos=1, retain=True)
        self._client.on_subscribe = lambda *_: self._note("subscribed")
        self._client.on_publish = lambda *_: self._note("published")
        self._client.on_message = lambda _client, _data, message: self._heard(bytes(message.payload))
        self._client.connect(broker.host, broker.port)
        self._client.loop_start()
        self._client.subscribe(topic(agent_id, "command"), qos=1)
        self.wait_for("subscribed")

    def say(self, state: AgentState, **more: Any) -> None:
        """Publish a retained status and wait for the broker's word."""
        self._events.clear()
        self._client.publish(topic(self.agent_id, "status"), self._status(state, **more), qos=1, retain=True)
        self.wait_for("published")

    def wait_for(self, event: str) -> None:
        """Wait until this happened: `subscribed`, `published`, `command`."""
        with self._changed:
            assert self._changed.wait_for(lambda: event in self._events, TIME_OUT_S), f"no {event}"

    def vanish(self) -> None:
        """Lose the connection without a goodbye, as a power cut does."""
        sock = self._client.socket()
        assert isinstance(sock, socket.socket)
        # No reconnection: paho's thread ends because it is told to stop, and the broker hears nothing but the end.
        self._client.on_disconnect = None
        sock.shutdown(socket.SHUT_RDWR)
        self._client.loop_stop()

    def leave(self) -> None:
        """End the connection in order: no Last Will."""
        self._client.disconnect()
        self._client.loop_stop()

    def _status(self, state: AgentState, **more: Any) -> bytes:
        return encode(Status(agent_id=self.agent_id, state=state, reported_unix_ns=time.time_ns(), **more))

    def _heard(self, payload: bytes) -> None:
        self.commands.append(msgspec.json.decode(payload, type=Command))
        self._note("command")

    def _note(self, event: str) -> None:
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()
