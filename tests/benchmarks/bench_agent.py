"""What the agent costs at rest: resident memory and CPU of `fleet-probe run` with light tasks every 10 s.

Beside it, in the same run, a Python that has only imported what any such agent needs (asyncio, ssl, sqlite3) and
sleeps: the floor below which no Python agent can get.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from real_fleet import Fleet, wait_until

from fleet_controller.lab.services import Service

SCHEDULES = """\
  rest:
    period_s: 10
    actions:
      - {task: round_trip, name: stamp, peers: [near], parameters: {packets: 10, interval_s: 0.1}}
      - {task: dns, parameters: {name: peer.test, record_type: A}}
      - {task: host}
"""
# What a probe has unless its file says otherwise.
STATUS_PERIOD_S = 60
# Start-up is not rest: imports, the first instruction, the first cycle.
SETTLE_S = 15.0
RESIDENT_TARGET_BYTES = 45e6
CPU_TARGET_RATIO = 0.003
FLOOR = "import asyncio, ssl, sqlite3, time; time.sleep(1e6)"


def resident_bytes(pid: int) -> int:
    """Memory that the process holds, as the kernel counts it."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"process {pid} has no resident memory: it ended")


def cpu_s(pid: int) -> float:
    """CPU seconds that the process used, by the scheduler's own clock: ticks of 10 ms are too coarse at rest."""
    schedules = [task.joinpath("schedstat") for task in Path(f"/proc/{pid}/task").iterdir()]
    return sum(int(schedule.read_text().split()[0]) for schedule in schedules) / 1e9


def main() -> int:
    """Run it, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--for", dest="seconds", type=float, default=60.0, help="how long to watch (default 60 s)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-agent-") as folder:
        figures = watch(Path(folder), arguments.seconds)
    if arguments.json:
        sys.stdout.write(json.dumps(figures) + "\n")
    else:
        for name, value in figures.items():
            sys.stdout.write(f"{name:28} {value:.6g}\n")
    met = figures["resident_bytes"] <= RESIDENT_TARGET_BYTES and figures["cpu_ratio"] <= CPU_TARGET_RATIO
    return 0 if met else 1


def watch(folder: Path, seconds: float) -> dict[str, float]:
    """One agent with two links, and the floor, over the same seconds."""
    fleet = Fleet(folder, ["rest-1"])
    floor = Service(folder / "floor", [sys.executable, "-c", FLOOR], lambda: True)
    try:
        fleet.write(SCHEDULES, status_period_s=STATUS_PERIOD_S)
        for service in (fleet.broker, fleet.influxd, fleet.resolver, fleet.peer, fleet.controller, floor):
            service.start()
        fleet.run_controller_command("apply")
        probe = fleet.probes["rest-1"].start()
        wait_until(lambda: len(fleet.query("SELECT sequence FROM round_trip")) > 1, "the first results are stored")
        time.sleep(SETTLE_S)
        pid, before = probe.pid or 0, cpu_s(probe.pid or 0)
        started = time.monotonic()
        time.sleep(seconds)
        return {
            "resident_bytes": resident_bytes(pid),
            "resident_target_bytes": RESIDENT_TARGET_BYTES,
            "floor_resident_bytes": resident_bytes(floor.pid or 0),
            "cpu_ratio": (cpu_s(pid) - before) / (time.monotonic() - started),
            "cpu_target_ratio": CPU_TARGET_RATIO,
            "results": sum(len(sequences) for sequences in fleet.stored_sequences().values()),
        }
    finally:
        floor.kill()
        fleet.stop()


if __name__ == "__main__":
    sys.exit(main())
