"""What the tests of the ingest path share: a planted task, a fleet, reports, nginx as a v2 server, an agent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from fleet_controller.config import BatchConfig, BrokerConfig, ControllerConfig, InfluxConfig
from fleet_controller.fleet.load import load_fleet
from fleet_controller.fleet.model import Fleet
from fleet_controller.lab.services import Service, answers, find_program, free_port
from fleet_controller.records import Accepted, Verdict
from fleet_controller.validate import Validator
from probe.messages import ClockReading, ClockState, Entry, Receipt, Report, Result, encode, topic
from probe.tasks.base import AnyTask, Context, Load, Parameters, Sample, TaskType, Values

AGENT = "hn-01"
SPACE = "0123456789ab-1"
# 2026-01-01 00:00:00.123456789 UTC: every digit of a nanosecond counts.
START_UNIX_NS = 1_767_225_600_123_456_789
FLEET_YAML = """\
operators:
  viettel: {name: Viettel}
peers:
  near: {host: 192.0.2.1, scope: domestic}
schedules:
  rest:
    period_s: 3600
    actions:
      - {task: gauge, peers: [near]}
probes:
  hn-01: {province: ha_noi, links: {fixed: {operator: viettel, access: fixed}}}
  hn-02: {province: ha_noi, links: {fixed: {operator: viettel, access: fixed}}}
"""


class GaugeParameters(Parameters, frozen=True):
    """Two parameters that tell series apart, and one that does not."""

    direction: Literal["download", "upload"] = "download"
    ip_version: Literal[4, 6] = 4
    packets: int = 10


class GaugeSample(Sample, frozen=True):
    """A point of the planted task's curve."""

    moved_bytes: int


class GaugeValues(Values, frozen=True):
    """One field of every type that there is."""

    packets_sent: int
    delay_median_s: float | None = None
    intercepted: bool | None = None
    server: str | None = None
    steps: tuple[GaugeSample, ...] = ()


async def _measure(_context: Context, _parameters: GaugeParameters) -> GaugeValues:
    return GaugeValues(packets_sent=0)


GAUGE: AnyTask = TaskType(
    name="gauge",
    version=1,
    parameters=GaugeParameters,
    values=GaugeValues,
    measure=_measure,
    load=Load.LIGHT,
    time_out_s=lambda _parameters: 1.0,
)
TASKS: dict[str, AnyTask] = {"gauge": GAUGE}


def result(offset_ns: int = 0, values: dict[str, Any] | None = None, **changes: Any) -> Result:
    """A result of the planted task; `changes` are fields of `Result`."""
    fields: dict[str, Any] = {
        "task": "gauge",
        "task_version": 1,
        "action": "gauge",
        "schedule": "rest",
        "start_unix_ns": START_UNIX_NS + offset_ns,
        "clock": ClockReading(state=ClockState.SYNCHRONISED, max_error_s=0.001),
        "link": "fixed",
        "peer": "near",
        "variant": {"direction": "download", "ip_version": "4"},
        "values": {"packets_sent": 10, "delay_median_s": 3.0} if values is None else values,
    }
    if "failure" in changes or "not_run" in changes:
        fields["values"] = None
    return Result(**{**fields, **changes})


def report(*results: Result | bytes, first: int = 1, floor: int = 1, **changes: Any) -> Report:
    """A report with these results (or raw JSON), numbered from `first` on."""
    raws = [one if isinstance(one, bytes) else msgspec.json.encode(one) for one in results]
    entries = tuple(Entry(sequence=first + index, result=msgspec.Raw(raw)) for index, raw in enumerate(raws))
    fields: dict[str, Any] = {
        "agent_id": AGENT,
        "sequence_space": SPACE,
        "sequence_floor": floor,
        "entries": entries,
        "sent_unix_ns": START_UNIX_NS,
    }
    return Report(**{**fields, **changes})


def altered(message: Report | Result, **changes: Any) -> bytes:
    """The JSON of a message with some members replaced, whatever their type."""
    return json.dumps({**json.loads(encode(message)), **changes}).encode()


def fleet(folder: Path) -> Fleet:
    """The fleet of these tests, from its file, which it writes."""
    path = folder / "fleet.yaml"
    path.write_text(FLEET_YAML)
    return load_fleet(path, TASKS)


def validate(folder: Path, message: Report | bytes, to: str | None = None) -> Verdict:
    """What a validator of this fleet says of a message."""
    payload = message if isinstance(message, bytes) else encode(message)
    return Validator(fleet(folder), TASKS).validate(to or topic(AGENT, "report"), payload)


def accepted(folder: Path, *results: Result) -> list[Accepted]:
    """Results as validation hands them on; asserts that it takes them all."""
    found: list[Accepted] = []
    for index in range(0, len(results), 10):
        verdict = validate(folder, report(*results[index : index + 10], first=index + 1))
        assert not verdict.rejected, verdict.rejected
        found += verdict.accepted
    return found


def wait_until(true: Callable[[], object], what: str, time_out_s: float = 30.0) -> None:
    """Wait for a condition of another process; fail with `what` was waited for."""
    deadline = time.monotonic() + time_out_s
    while not true():
        assert time.monotonic() < deadline, f"waited {time_out_s} s in vain: {what}"
        time.sleep(0.02)


class Nginx(Service):
    """What makes InfluxDB 1.6.7 a server with the v2 write endpoint: an nginx in front of it."""

    def __init__(self, directory: Path, influx_port: int) -> None:
        self.port = free_port()
        directory.mkdir(parents=True)
        configuration = directory / "nginx.conf"
        configuration.write_text(NGINX_CONF.format(directory=directory, port=self.port, influx_port=influx_port))
        command = [find_program("nginx", "nginx-light"), "-p", str(directory), "-c", str(configuration)]
        super().__init__(
            directory, [*command, "-e", str(directory / "error.log")], lambda: answers("127.0.0.1", self.port)
        )

    @property
    def url(self) -> str:
        """Where the v2 write endpoint is."""
        return f"http://127.0.0.1:{self.port}"


# A body over client_body_buffer_size goes through a file and stalls for 40 ms.
NGINX_CONF = """\
daemon off;
user root;
worker_processes 1;
pid {directory}/pid;
error_log {directory}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  map $arg_precision $v1p {{ default n; ns n; us u; ms ms; s s; }}
  upstream influx1 {{ server 127.0.0.1:{influx_port}; keepalive 16; }}
  server {{
    listen 127.0.0.1:{port};
    client_max_body_size 25m;
    client_body_buffer_size 8m;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    location = /api/v2/write {{ rewrite ^ /write?db=$arg_bucket&precision=$v1p? break; proxy_pass http://influx1; }}
    location / {{ proxy_pass http://influx1; }}
  }}
}}
"""


class AgentClient:
    """An agent's MQTT client: publishes reports and collects what the controller answers."""

    def __init__(self, port: int, agent_id: str = AGENT) -> None:
        self.agent_id = agent_id
        self.receipts: list[Receipt] = []
        self.instructions: list[bytes] = []
        self._subscribed = threading.Event()
        self._confirmed = threading.Semaphore(0)
        self.client = Client(CallbackAPIVersion.VERSION2, client_id=agent_id, protocol=MQTTProtocolVersion.MQTTv5)
        self.client.max_inflight_messages_set(1000)
        self.client.on_connect = lambda client, *_: client.subscribe(
            [(topic(agent_id, "receipt"), 1), (topic(agent_id, "instruction"), 1)]
        )
        self.client.on_subscribe = lambda *_: self._subscribed.set()
        self.client.on_publish = lambda *_: self._confirmed.release()
        self.client.on_message = lambda _client, _data, message: self._note(message.topic, bytes(message.payload))
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert self._subscribed.wait(10)

    def send(self, *messages: Report | bytes, to: str | None = None) -> None:
        """Publish and wait until the broker has everything."""
        for message in messages:
            payload = message if isinstance(message, bytes) else encode(message)
            self.client.publish(to or topic(self.agent_id, "report"), payload, qos=1)
        for _ in messages:
            assert self._confirmed.acquire(timeout=30)

    def contiguous(self, space: str = SPACE) -> int:
        """Up to which number everything has a receipt; 0 without any."""
        return max((one.contiguous for one in self.receipts if one.sequence_space == space), default=0)

    def wait_for_receipt(self, sequence: int, space: str = SPACE, time_out_s: float = 30.0) -> None:
        """Wait until everything up to `sequence` has a receipt."""
        wait_until(lambda: self.contiguous(space) >= sequence, f"a receipt up to {sequence}", time_out_s)

    def close(self) -> None:
        """Disconnect."""
        self.client.disconnect()
        self.client.loop_stop()

    def _note(self, name: str, payload: bytes) -> None:
        if name.endswith("/receipt"):
            self.receipts.append(msgspec.json.decode(payload, type=Receipt))
        else:
            self.instructions.append(payload)


def controller_config(folder: Path, broker_port: int, influx_url: str, **batch: Any) -> ControllerConfig:
    """A controller's configuration with its fleet file and state in `folder`."""
    fleet(folder)
    return ControllerConfig(
        broker=BrokerConfig(host="127.0.0.1", port=broker_port, keepalive_s=5),
        influxdb=InfluxConfig(url=influx_url, timeout_s=5.0),
        fleet_file=folder / "fleet.yaml",
        state_dir=folder / "state",
        batch=BatchConfig(**batch),
    )


def start_controller(folder: Path, broker_port: int, influx_url: str) -> subprocess.Popen[bytes]:
    """`serve` with the planted task, as a process of its own that can be killed."""
    fleet(folder)
    program = (
        "import sys, logging, pathlib, ingest_kit, probe.tasks\n"
        "from fleet_controller.controller import serve\n"
        "logging.basicConfig(level='INFO')\n"
        "probe.tasks.TASKS.clear(); probe.tasks.TASKS.update(ingest_kit.TASKS)\n"
        "serve(ingest_kit.controller_config(pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))\n"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    with (folder / "controller.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", program, str(folder), str(broker_port), influx_url],
            env={**os.environ, "PYTHONPATH": paths}, stdout=log, stderr=log,
        )  # fmt: skip
