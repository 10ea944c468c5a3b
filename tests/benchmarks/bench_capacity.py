"""What a gigabyte costs the CPU of the one who measures: the task `capacity` beside iperf3 and curl, in the same run.

    python tests/benchmarks/bench_capacity.py [--line both] [--repeats 5] [--mbit 1000] [--seconds 3] [--brief]

The tools take turns, and the median of each counts. CPU is user and system time: of `measure` for ours, from the name's
resolution to the result; whole processes for the others, which start within milliseconds.

Two lines of the same rate. `emulator` carries the packets between the two ends in a process of its own, so what TCP
does for the far end when a packet gets there is charged to that process; on a real line it is another machine's.
The targets are checked there. On `kernel` (token buckets on a veth pair) a packet is handed all the way into the other
end's TCP within the call that sends it: who sends data or an acknowledgement pays for the other side's work too, and
the more so the better it batches. That line shows what the probe's CPU is asked for in one machine, not what measuring
costs. Nothing is pinned to a core: that moves this foreign work to and fro, with opposite effects on the two ways.

Absolute figures depend on the machine and on what else runs there: compare the ratios.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fleet_controller.lab.profile import LinkProfile
from fleet_controller.lab.services import Service, answers, find_program
from fleet_controller.lab.site import LINK, NGINX_HTTP_PORT, PEER_HTTP_PORT, PEER_V4, Site

OURS_TO_IPERF3_MAX = {"download": 0.35, "upload": 0.6}
Line = Literal["emulator", "kernel"]
# The line that the targets are for: the other end's work is not charged to the one who measures.
TARGETS_LINE: Line = "emulator"
LINE_DELAYS_S: dict[Line, float] = {"emulator": 0.004, "kernel": 0.0}  # the kernel's token bucket delays nothing
BUFFER_S = 0.03
GIGA = 1e9
BITS = 8
IPERF3_PORT = 5201
OURS = """
import asyncio, json, resource, socket, sys
from probe.clock import SystemClock
from probe.config import LinkConfig
from probe.links import Link
from probe.messages import Peer
from probe.tasks.base import Context
from probe.tasks.capacity import TASK, CapacityParameters

def cpu_s():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime

async def main(interface, host, parameters):
    link = Link(LinkConfig(name="line", interface=interface))
    context = Context(SystemClock(), 60, link, Peer(name="peer", host=host, http_port=int(sys.argv[4])))
    before_s = cpu_s()
    values = await TASK.measure(context, CapacityParameters(**parameters))
    print(json.dumps([cpu_s() - before_s, values.transferred_bytes, values.capacity_bps]))

asyncio.run(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """One run: CPU seconds, bytes moved, and the rate that the tool reported, in bits per second."""

    cpu_s: float
    moved_bytes: int
    rate_bps: float

    @property
    def cpu_s_per_gigabyte(self) -> float:
        """The figure of merit."""
        return self.cpu_s / (self.moved_bytes / GIGA)


Measure = Callable[[Site, str, float], Cost]


def main() -> int:
    """Measure and print; the exit code says whether the targets were met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--line", choices=(*LINE_DELAYS_S, "both"), default="both")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--mbit", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long the others run")
    parser.add_argument("--brief", action="store_true", help="only what the targets compare")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rate_bps = arguments.mbit * 1_000_000
    tools = {name: TOOLS[name] for name in ("capacity", "iperf3")} if arguments.brief else TOOLS
    lines = LINE_DELAYS_S if arguments.line == "both" else (arguments.line,)
    figures = {}
    for line in lines:
        figures[line] = summarize(compare(line, rate_bps, tools, arguments.repeats, arguments.seconds), rate_bps)
        if not arguments.json:
            sys.stdout.write(f"{line}\n{table(figures[line])}")
    if arguments.json:
        sys.stdout.write(json.dumps(figures) + "\n")
    return 0 if TARGETS_LINE not in figures or meets_targets(figures[TARGETS_LINE]) else 1


def meets_targets(figures: dict[str, dict[str, dict[str, float]]]) -> bool:
    """Both ways, by the medians."""
    return all(figures[way]["capacity"]["to_iperf3"] <= limit for way, limit in OURS_TO_IPERF3_MAX.items())


def compare(
    line: Line, rate_bps: int, tools: dict[str, Measure], repeats: int, seconds: float
) -> dict[tuple[str, str], list[Cost]]:
    """Every tool in both directions, in turns, on one line of `rate_bps`."""
    costs: dict[tuple[str, str], list[Cost]] = defaultdict(list)
    profile = LinkProfile(rate_bps, rate_bps, LINE_DELAYS_S[line], buffer_s=BUFFER_S)
    with Site(profile, shaper=line, nginx=True) as site:
        start_iperf3(site)
        for _ in range(repeats):
            for way in OURS_TO_IPERF3_MAX:
                for name, measure in tools.items():
                    costs[way, name].append(measure(site, way, seconds))
    return costs


def summarize(costs: dict[tuple[str, str], list[Cost]], rate_bps: int) -> dict[str, dict[str, dict[str, float]]]:
    """Medians and ratios, by direction and tool."""
    expected_bps = LinkProfile(rate_bps, rate_bps, 0).expected_capacity_bps("download")
    figures: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    for (way, name), runs in costs.items():
        per_gigabyte = [run.cpu_s_per_gigabyte for run in runs]
        reference = statistics.median(run.cpu_s_per_gigabyte for run in costs[way, "iperf3"])
        figures[way][name] = {
            "cpu_s_per_gigabyte": statistics.median(per_gigabyte),
            "least": min(per_gigabyte),
            "most": max(per_gigabyte),
            "to_iperf3": statistics.median(per_gigabyte) / reference,
            "error_ratio": statistics.median(run.rate_bps for run in runs) / expected_bps - 1,
            "moved_bytes": statistics.median(run.moved_bytes for run in runs),
        }
    return figures


def table(figures: dict[str, dict[str, dict[str, float]]]) -> str:
    """For people."""
    rows = [f"{'':10}{'tool':22}{'CPU-s/GB':>9}{'min':>8}{'max':>8}{'x iperf3':>10}{'error':>9}{'MB':>8}"]
    for way, tools in figures.items():
        for name, figure in tools.items():
            cost = f"{figure['cpu_s_per_gigabyte']:>9.3f}{figure['least']:>8.3f}{figure['most']:>8.3f}"
            rest = f"{figure['to_iperf3']:>10.2f}{figure['error_ratio']:>+9.2%}{figure['moved_bytes'] / 1e6:>8.0f}"
            rows.append(f"{way:10}{name:22}{cost}{rest}")
    return "\n".join(rows) + "\n"


def ours(site: Site, way: str, seconds: float) -> Cost:
    """The task as a probe runs it: it ends when it knows enough."""
    del seconds
    return ours_with(site, {"direction": way})


def ours_for_as_long(site: Site, way: str, seconds: float) -> Cost:
    """The same engine for as long as the others, so that its beginning weighs as little as theirs."""
    file_bytes = int(site.profile.rate_bps("download") / BITS * seconds)
    return ours_with(site, {"direction": way, "mode": "file", "file_bytes": file_bytes, "max_duration_s": 30})


def ours_with(site: Site, parameters: dict[str, object]) -> Cost:
    """`measure` in a process of its own."""
    done = site.run_near([sys.executable, "-c", OURS, LINK, PEER_V4, json.dumps(parameters), str(PEER_HTTP_PORT)])
    cpu_s, moved_bytes, rate_bps = json.loads(done.stdout)
    return Cost(cpu_s, moved_bytes, rate_bps)


def iperf3(site: Site, way: str, seconds: float, *more: str) -> Cost:
    """One stream, as it comes; it tells its own CPU share, but the kernel's word is taken."""
    command = ["iperf3", "-c", PEER_V4, "-t", str(seconds), "-J", *(["-R"] if way == "download" else []), *more]
    cpu_s, said = timed(site, command)
    end = json.loads(said)["end"]["sum_received"]
    return Cost(cpu_s, end["bytes"], end["bits_per_second"])


def iperf3_of_8(site: Site, way: str, seconds: float) -> Cost:
    """As many streams as ours ends with on such a line."""
    return iperf3(site, way, seconds, "-P", "8")


def curl(site: Site, way: str, seconds: float) -> Cost:
    """One transfer from or to nginx."""
    what = ["-o", "/dev/null"] if way == "download" else ["-T", "/dev/zero", "-X", "POST", "-o", "/dev/null"]
    path = "download" if way == "download" else "upload"
    figures = "%{size_download} %{size_upload} %{time_total}"
    command = [
        "curl",
        "-s",
        *what,
        "-w",
        figures,
        "--max-time",
        str(seconds),
        f"http://{PEER_V4}:{NGINX_HTTP_PORT}/{path}",
    ]
    cpu_s, said = timed(site, command)
    downloaded, uploaded, took_s = (float(word) for word in said.split())
    moved = int(downloaded if way == "download" else uploaded)
    return Cost(cpu_s, moved, moved * BITS / took_s)


def timed(site: Site, command: list[str]) -> tuple[float, str]:
    """CPU seconds of a program and what it said."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = site.run_near(command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def start_iperf3(site: Site) -> None:
    """Its server, behind the line."""
    command = [find_program("iperf3", "iperf3"), "-s", "-p", str(IPERF3_PORT)]
    site.start_far(Service(Path(site.directory) / "iperf3", command, lambda: answers(PEER_V4, IPERF3_PORT)))


TOOLS: dict[str, Measure] = {
    "capacity": ours,
    "capacity, as long": ours_for_as_long,
    "iperf3": iperf3,
    "iperf3, 8 streams": iperf3_of_8,
    "curl": curl,
}

if __name__ == "__main__":
    sys.exit(main())
