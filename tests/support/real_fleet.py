"""A small fleet of real processes: broker, database, peer, controller and probes, each of which can be killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from probe_file import probe_toml

from fleet_controller.lab.services import Dnsmasq, Influxd, Mosquitto, Service, answers, free_port

DATABASE = "fleet"

FLEET = """\
operators:
  viettel: {{name: Viettel}}
  vnpt: {{name: VNPT}}
peers:
  near: {{host: 127.0.0.1, scope: domestic, stamp_port: {stamp_port}, http_port: {http_port}}}
schedules:
{schedules}
probes:
{probes}
"""
SCHEDULES = """\
  often:
    period_s: 1
    actions:
      - {task: round_trip, name: stamp, peers: [near], parameters: {packets: 2, interval_s: 0.02}}
      - {task: dns, parameters: {name: peer.test, record_type: A}}
      - {task: host}
"""
IDLE = """\
  idle:
    period_s: 86400
    actions:
      - {task: host}
"""
PROBE = """\
  {agent_id}:
    province: ha-noi
    links:
      fixed0: {{operator: viettel, access: fixed}}
      mobile0: {{operator: vnpt, access: mobile, byte_budget_per_month: 10000000000}}
"""
CONTROLLER_TOML = """\
fleet_file = "fleet.yaml"
state_dir = "controller-state"
log_level = "INFO"
[broker]
host = "127.0.0.1"
port = {broker_port}
[influxdb]
url = "{influx_url}"
database = "{database}"
"""


class Fleet:
    """Everything in one folder, on free ports of the loopback, started and killed one by one."""

    def __init__(self, directory: Path, agent_ids: list[str]) -> None:
        self.directory = directory
        self.agent_ids = agent_ids
        self.broker = Mosquitto(directory / "mosquitto")
        self.influxd = Influxd(directory / "influxd")
        self.resolver = Dnsmasq(directory / "dnsmasq", names={"peer.test": "127.0.0.1"})
        self.http_port, self.stamp_port = free_port(), free_port(kind=socket.SOCK_DGRAM)
        self.peer = self._child(
            "peer",
            [
                *["-m", "probe.cli", "peer", "--host", "127.0.0.1"],
                *["--http-port", str(self.http_port), "--stamp-port", str(self.stamp_port)],
            ],
            lambda: answers("127.0.0.1", self.http_port),
        )
        self.controller = self._child(
            "controller",
            ["-m", "fleet_controller.cli", "serve", "--config", str(self.controller_toml)],
            # A SIGHUP before the controller catches it would be ignored or, in the first moments, end it.
            lambda: catches(self.controller.pid or 0, signal.SIGHUP),
        )
        self.probes = {agent_id: self.probe_child(agent_id) for agent_id in agent_ids}

    @property
    def controller_toml(self) -> Path:
        """The controller's configuration."""
        return self.directory / "controller.toml"

    def state_dir(self, agent_id: str) -> Path:
        """A probe's state."""
        return self.directory / agent_id / "state"

    def write(self, schedules: str = SCHEDULES, *, status_period_s: float = 5) -> None:
        """Write every configuration file; the schedules are what changes."""
        self.controller_toml.write_text(
            CONTROLLER_TOML.format(broker_port=self.broker.port, influx_url=self.influxd.url, database=DATABASE)
        )
        probes = "".join(PROBE.format(agent_id=agent_id) for agent_id in self.agent_ids)
        (self.directory / "fleet.yaml").write_text(
            FLEET.format(
                stamp_port=self.stamp_port, http_port=self.http_port, schedules=schedules.rstrip("\n"), probes=probes
            )
        )
        for agent_id in self.agent_ids:
            self.state_dir(agent_id).mkdir(parents=True, exist_ok=True)
            text = probe_toml(
                agent_id,
                self.state_dir(agent_id),
                self.broker.port,
                status_period_s=status_period_s,
                resolver=f"127.0.0.1:{self.resolver.port}",
            )
            (self.directory / agent_id / "probe.toml").write_text(text)

    def start(self, schedules: str = SCHEDULES) -> None:
        """Start the servers, tell the fleet what to measure, start the controller and the probes."""
        self.write(schedules)
        for service in (self.broker, self.influxd, self.resolver, self.peer, self.controller):
            service.start()
        self.run_controller_command("apply")
        for probe in self.probes.values():
            probe.start()

    def stop(self) -> None:
        """Stop whatever runs."""
        for service in (*self.probes.values(), self.controller, self.peer, self.resolver, self.influxd, self.broker):
            service.stop()

    def stop_measuring(self) -> None:
        """Give every probe an instruction with nothing to do soon, so that the spools can run empty."""
        self.write(IDLE)
        self.run_controller_command("apply")
        os.kill(self.controller.pid or 0, signal.SIGHUP)

    def run_controller_command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one sub-command of fleet-controller to its end."""
        command = [sys.executable, "-m", "fleet_controller.cli", *arguments, "--config", str(self.controller_toml)]
        outcome = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert outcome.returncode in {0, 1}, outcome.stderr
        return outcome

    def query(self, influxql: str) -> list[dict[str, Any]]:
        """The rows of one query, as the database says them, tags included."""
        form = urllib.parse.urlencode({"db": DATABASE, "q": influxql, "epoch": "ns"})
        with urllib.request.urlopen(f"{self.influxd.url}/query?{form}", timeout=30) as answer:  # noqa: S310 - http only
            found = json.load(answer)["results"][0]
        if "database not found" in found.get("error", ""):
            return []  # the controller makes it when it first gets through
        assert "error" not in found, found
        return [
            dict(zip(series["columns"], row, strict=True)) | series.get("tags", {})
            for series in found.get("series", [])
            for row in series["values"]
        ]

    def stored_sequences(self) -> dict[tuple[str, str], list[int]]:
        """Every result in the database by (agent, sequence space), repeats included."""
        stored: dict[tuple[str, str], list[int]] = {}
        for row in self.query("SELECT sequence, sequence_space, agent_id FROM round_trip, dns, host, capacity"):
            if row["sequence"] is not None:
                stored.setdefault((row["agent_id"], row["sequence_space"]), []).append(row["sequence"])
        return stored

    def spool_rows(self, agent_id: str) -> int:
        """How many results wait in a probe's spool."""
        with closing(
            sqlite3.connect(f"file:{self.state_dir(agent_id)}/spool.db?mode=ro", uri=True, timeout=10)
        ) as connection:
            return int(connection.execute("SELECT count(*) FROM results").fetchone()[0])

    def probe_child(self, agent_id: str) -> Service:
        """A probe's process."""
        toml = self.directory / agent_id / "probe.toml"
        return self._child(agent_id, ["-m", "probe.cli", "run", "--config", str(toml)], lambda: True)

    def _child(self, name: str, arguments: list[str], ready: Callable[[], bool]) -> Service:
        return Service(self.directory / name, [sys.executable, *arguments], ready)


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal (proc(5), SigCgt)."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(mask, 16) & 1 << (number - 1))


def wait_until(true: Callable[[], bool], what: str, time_out_s: float = 90.0) -> None:
    """Look again until it is so.

    Raises:
        AssertionError: it never was; names `what`.
    """
    deadline = time.monotonic() + time_out_s
    while not true():
        assert time.monotonic() < deadline, f"not within {time_out_s:.0f} s: {what}"
        time.sleep(0.25)
