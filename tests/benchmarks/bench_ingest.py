"""How fast the controller drains a queue, beside a bare paho subscriber that stores nothing.

    python tests/benchmarks/bench_ingest.py [--reports 5000] [--results 1] [--repeats 3]

Both drain the same number of reports that the broker holds for a durable session. Absolute rates depend on the
machine and on what else runs there: compare the ratio. Runs alternate, and the median of each counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from ingest_kit import TASKS, AgentClient, controller_config, report, result, wait_until
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from fleet_controller.controller import Controller
from fleet_controller.lab.services import Influxd, Mosquitto
from probe.messages import Report, topic_filter


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=int, default=5000)
    parser.add_argument("--results", type=int, default=1, help="results in a report")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    bare, ours = [], []
    for _ in range(arguments.repeats):
        bare.append(arguments.reports / drain_bare(arguments.reports, arguments.results))
        ours.append(arguments.reports / drain_controller(arguments.reports, arguments.results))
    figures = {
        "reports": arguments.reports,
        "results_per_report": arguments.results,
        "bare_reports_per_s": round(statistics.median(bare)),
        "controller_reports_per_s": round(statistics.median(ours)),
        "controller_results_per_s": round(statistics.median(ours) * arguments.results),
        "ratio": round(statistics.median(ours) / statistics.median(bare), 3),
    }
    print(json.dumps(figures))  # noqa: T201 - this is what the script is for


def reports(count: int, results: int) -> list[Report]:
    """Reports whose results have each a time of their own."""
    return [
        report(*(result(number * results + index) for index in range(results)), first=number * results + 1)
        for number in range(count)
    ]


def drain_bare(count: int, results: int) -> float:
    """Seconds in which a subscriber that acknowledges at once takes the queue."""
    with tempfile.TemporaryDirectory() as folder, Mosquitto(Path(folder) / "mosquitto") as broker:
        connect_bare(broker.port).stop()
        fill(broker.port, count, results)
        started_s = time.monotonic()
        subscriber = connect_bare(broker.port)
        wait_until(lambda: subscriber.received >= count, "the queue", 300)
        spent_s = time.monotonic() - started_s
        subscriber.stop()
    return spent_s


def drain_controller(count: int, results: int) -> float:
    """Seconds in which the controller takes the queue, until the last result is durable."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Mosquitto(folder / "mosquitto") as broker, Influxd(folder / "influxd") as influxd:
            config = controller_config(folder, broker.port, influxd.url)
            first = Controller(config, TASKS)
            first.start()
            first.ready.wait(30)
            first.stop()
            fill(broker.port, count, results)
            controller = Controller(config, TASKS)
            started_s = time.monotonic()
            controller.start()
            wait_until(lambda: controller.counters().stored >= count * results, "the queue", 300)
            spent_s = time.monotonic() - started_s
            controller.stop()
    return spent_s


def fill(port: int, count: int, results: int) -> None:
    """Have the broker hold reports for whoever has a session."""
    agent = AgentClient(port)
    agent.send(*reports(count, results))
    agent.close()


class Bare:
    """A subscriber that counts."""

    def __init__(self, port: int) -> None:
        self.received = 0
        self.subscribed = threading.Event()
        self.client = Client(CallbackAPIVersion.VERSION2, client_id="bare", protocol=MQTTProtocolVersion.MQTTv5)
        self.client.on_connect = lambda client, *_: client.subscribe(topic_filter("report"), 1)
        self.client.on_subscribe = lambda *_: self.subscribed.set()
        self.client.on_message = self._count
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho ships no type for it
        properties.SessionExpiryInterval = 3600
        properties.ReceiveMaximum = 4000
        self.client.connect("127.0.0.1", port, clean_start=False, properties=properties)
        self.client.loop_start()

    def stop(self) -> None:
        """Disconnect and keep the session."""
        self.client.disconnect()
        self.client.loop_stop()

    def _count(self, *_: object) -> None:
        self.received += 1


def connect_bare(port: int) -> Bare:
    """A subscriber whose subscription the broker has."""
    subscriber = Bare(port)
    subscriber.subscribed.wait(30)
    return subscriber


if __name__ == "__main__":
    main()
