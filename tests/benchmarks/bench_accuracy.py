"""How exact, and for how many bytes: our tasks beside the tools that people trust, on the lab's lines, in the same run.

    python tests/benchmarks/bench_accuracy.py [--profiles ftth_150_100,4g_good] [--repeats 5] [--seconds 10]
    python tests/benchmarks/bench_accuracy.py --only delay

Each tool measures each line in turn, `--repeats` times; errors are medians over the runs, bytes are what the line
carried (counters of its interface, so that every header and every packet on its way is in). Compared are

    capacity    our `capacity` (full, and capped at a fifth of 10 s of the line), iperf3 with one stream (the rule of
                ndt7: all bytes over all the time of one stream) and with eight, curl against nginx
    delay       our `round_trip` by STAMP, ICMP and TCP, ping, fping and irtt; a busy process shares the probe's core.
                Where the line has neither jitter nor loss, one more row is what the emulated line itself took in the
                same minutes by the kernel's stamps
    load        our `responsiveness` beside flent's method: irtt while iperf3 fills the line with eight streams

ndt7-client-go, librespeed-cli and netperf (flent's own load) are in no registry that a Debian machine reaches.
Needs root, iperf3, curl, fping and irtt.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet_controller.errors import ServiceError
from fleet_controller.lab.compare import compare
from fleet_controller.lab.comparison import Comparison, outcome
from fleet_controller.lab.namespaces import command_in
from fleet_controller.lab.own_error import delay_errors
from fleet_controller.lab.profile import DIRECTIONS, Direction
from fleet_controller.lab.services import Service, answers, die_with_parent, find_program
from fleet_controller.lab.site import LINK, NGINX_HTTP_PORT, PEER_V4, Site

PROFILES = ("ftth_150_100", "ftth_1000_500", "cable", "4g_good", "dsl_bloat", "satellite")
# A tool may not be more exact than ours by more than a percentage point in any profile.
LEAD_MAX_RATIO = 0.01
IPERF3_PORT, IRTT_PORT = 5201, 2112
PACKETS, INTERVAL_S, CONNECT_INTERVAL_S = 100, 0.02, 0.05
TIME_OUT_S = 2.0
ECHO_PAYLOAD_BYTES = 56  # ping's and fping's
BITS = 8
# Of payload; with all headers, and with what is sent twice, it has to be less than a quarter of the line's bytes.
CAPPED_SHARE = 0.2
MS = 1e3
# Longer than the longest round trip; less than a packet is somebody's question for a neighbour.
QUIET_S, QUIET_BYTES_MAX, SETTLED_S_MAX = 0.8, 1500, 15.0


@dataclass(frozen=True, slots=True)
class Reading:
    """One run of a tool: what it said, what it should have said, and what the line carried for it."""

    said: float
    expected: float
    line_bytes: int


Tool = Callable[[Site, Direction, float], float | None]  # absent: it heard nothing
# What it said, and what the line's rate allowed on average while it measured: some lines change their rate.
RateTool = Callable[[Site, Direction, float], tuple[float, float]]
Readings = dict[tuple[str, str, str], list[Reading]]


def main() -> int:
    """Measure and print; the exit code says whether no tool was more exact by over a percentage point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profiles", default=",".join(PROFILES), metavar="A,B")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long iperf3 and curl run (10)")
    parser.add_argument("--only", choices=("capacity", "delay", "load"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    wanted = [arguments.only] if arguments.only else ["capacity", "delay", "load"]
    beaten: list[str] = []
    found: dict[str, Any] = {}
    for part in wanted:
        readings: Readings = defaultdict(list)
        for profile in arguments.profiles.split(","):
            sys.stderr.write(f"{part}: {profile}\n")
            with Site(profile, nginx=True) as site:
                PARTS[part](site, profile, arguments.repeats, arguments.seconds, readings)
        found[part] = summarize(readings)
        if not arguments.json:
            sys.stdout.write(table(part, readings))
        if part == "capacity":
            beaten = losses(readings)
    if arguments.json:
        sys.stdout.write(json.dumps(found) + "\n")
    for line in beaten:
        sys.stderr.write(line + "\n")
    return 1 if beaten else 0


def compare_capacity(site: Site, profile: str, repeats: int, seconds: float, readings: Readings) -> None:
    """Every tool in both directions, in turns."""
    start_iperf3(site)
    for _ in range(repeats):
        for way in DIRECTIONS:
            for name, tool in CAPACITY_TOOLS.items():
                before = settled_line_bytes(site)
                said_bps, expected_bps = tool(site, way, seconds)
                readings[profile, way, name].append(Reading(said_bps, expected_bps, settled_line_bytes(site) - before))


def compare_delay(site: Site, profile: str, repeats: int, seconds: float, readings: Readings) -> None:
    """Every tool, in turns, 100 packets each, with a busy process on the core of whoever measures."""
    del seconds
    start_irtt(site)
    with busy_core():
        for _ in range(repeats):
            for name, (tool, payload_bytes) in DELAY_TOOLS.items():
                before = line_bytes(site)
                said_s = tool(site, "download", 0)
                expected_s = site.profile.expected_delay_s(payload_bytes)
                if said_s is None:
                    sys.stderr.write(f"{name} heard nothing: this run is left out\n")
                    continue
                readings[profile, "median", name].append(Reading(said_s, expected_s, line_bytes(site) - before))
            if not (site.profile.jitter_s or site.profile.loss_ratio):
                try:
                    readings[profile, "median", "the line itself"].append(line_itself(site))
                except ServiceError as error:
                    sys.stderr.write(f"the line itself: {error}: this run is left out\n")


def line_itself(site: Site) -> Reading:
    """What the line really took there and back just then, by the kernel's stamps at both its ends."""
    before, expected_s = line_bytes(site), site.profile.expected_delay_s(ECHO_PAYLOAD_BYTES)
    added_s = sum(statistics.median(delay_errors(site, way, PACKETS)) for way in DIRECTIONS)
    return Reading(expected_s + added_s, expected_s, line_bytes(site) - before)


def compare_load(site: Site, profile: str, repeats: int, seconds: float, readings: Readings) -> None:
    """Ours and flent's method in both directions. There is no true value but the buffer's size: between them."""
    start_iperf3(site)
    start_irtt(site)
    for _ in range(repeats):
        for way in DIRECTIONS:
            full_s = site.profile.expected_delay_s(ECHO_PAYLOAD_BYTES) + site.profile.buffer_of_s(way)
            for name, tool in LOAD_TOOLS.items():
                before = line_bytes(site)
                said_s = tool(site, way, seconds)
                if said_s is None:
                    sys.stderr.write(f"{way}, {name} heard nothing: this run is left out\n")
                    continue
                readings[profile, way, name].append(Reading(said_s, full_s, line_bytes(site) - before))


def ours(site: Site, way: Direction, seconds: float, **more: object) -> tuple[float, float]:
    """The task, as a probe runs it."""
    del seconds
    parameters = {"direction": way, **more}
    run = site.measure("capacity", parameters)
    for one in compare(site, run, parameters):
        if isinstance(one, Comparison) and one.what == way:
            return one.measured or 0.0, one.configured
    said = run.result.failure or run.result.not_run
    sys.stderr.write(f"{way}: {outcome(run.result)} {said.detail if said else ''}\n")
    return 0.0, site.profile.expected_capacity_bps(way)


def ours_capped(site: Site, way: Direction, seconds: float) -> tuple[float, float]:
    """A fifth of what 10 s of the line would bring."""
    cap_bytes = int(site.profile.rate_bps(way) * 10 / BITS * CAPPED_SHARE)
    return ours(site, way, seconds, mode="capped", max_bytes=cap_bytes)


def all_the_time(tool: Callable[[Site, Direction, float], float]) -> RateTool:
    """One whose figure is the mean from its beginning to its end."""

    def run(site: Site, way: Direction, seconds: float) -> tuple[float, float]:
        began_ns = time.monotonic_ns()
        said_bps = tool(site, way, seconds)
        mean_bps = site.link.mean_rate_bps(way, began_ns, time.monotonic_ns())
        return said_bps, site.profile.expected_capacity_bps(way) * mean_bps / site.profile.rate_bps(way)

    return run


def iperf3(site: Site, way: Direction, seconds: float, streams: int = 1) -> float:
    """What it prints in the end: the receiver's mean over all the time."""
    command = ["iperf3", "-c", PEER_V4, "-t", str(seconds), "-J", "-P", str(streams)]
    done = site.run_near([*command, *(["-R"] if way == "download" else [])])
    return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"])


def iperf3_of_8(site: Site, way: Direction, seconds: float) -> float:
    """With as many streams as ours has on most lines."""
    return iperf3(site, way, seconds, 8)


def curl(site: Site, way: Direction, seconds: float) -> float:
    """One transfer from or to nginx."""
    what = ["-o", "/dev/null"] if way == "download" else ["-T", "/dev/zero", "-X", "POST", "-o", "/dev/null"]
    url = f"http://{PEER_V4}:{NGINX_HTTP_PORT}/{way}"
    figures = "%{size_download} %{size_upload} %{time_total}"
    done = site.run_near(["curl", "-s", *what, "-w", figures, "--max-time", str(seconds), url])
    downloaded, uploaded, took_s = (float(word) for word in done.stdout.split())
    return (downloaded if way == "download" else uploaded) * BITS / took_s


def round_trip(method: str) -> Tool:
    """Our task by one of its methods: the median."""

    def run(site: Site, way: Direction, seconds: float) -> float | None:
        del way, seconds
        # Connections cost more than packets: fewer a second.
        interval_s = CONNECT_INTERVAL_S if method == "tcp" else INTERVAL_S
        parameters = {"method": method, "packets": PACKETS, "interval_s": interval_s}
        if method == "icmp":
            parameters["payload_bytes"] = ECHO_PAYLOAD_BYTES
        values = site.run("round_trip", parameters).values
        return None if values is None or values["delay_median_s"] is None else float(values["delay_median_s"])

    return run


def ping(site: Site, way: Direction, seconds: float) -> float | None:
    """Its own figures of each packet; the median of them."""
    del way, seconds
    done = site.run_near(["ping", "-n", "-c", str(PACKETS), "-i", str(INTERVAL_S), "-s", "56", PEER_V4])
    return median_ms_in_s(re.findall(r"time=([0-9.]+) ms", done.stdout))


def fping(site: Site, way: Direction, seconds: float) -> float | None:
    """The same; without a time-out of its own it waits for an answer no longer than from one packet to the next."""
    del way, seconds
    period_ms, time_out_ms = str(int(INTERVAL_S * MS)), str(int(TIME_OUT_S * MS))
    done = site.run_near(["fping", "-q", "-C", str(PACKETS), "-p", period_ms, "-t", time_out_ms, PEER_V4])
    said = done.stderr.strip().rpartition(":")[2].split()
    return median_ms_in_s([word for word in said if word != "-"])


def median_ms_in_s(words: Sequence[str]) -> float | None:
    """Of milliseconds as they were printed; absent when there are none."""
    return statistics.median(float(word) / MS for word in words) if words else None


def irtt(site: Site, way: Direction, seconds: float) -> float | None:
    """The median that it prints; absent when nothing came back, as through a deep buffer within its time."""
    del way
    length_s = seconds or PACKETS * INTERVAL_S
    command = ["irtt", "client", "-Q", "-i", f"{int(INTERVAL_S * MS)}ms", "-d", f"{length_s:.1f}s", "-o", "-"]
    said = site.run_near([*command, f"{PEER_V4}:{IRTT_PORT}"]).stdout
    median_ns = json.loads(said)["stats"]["rtt"].get("median")
    return None if median_ns is None else float(median_ns) / 1e9


def responsiveness(site: Site, way: Direction, seconds: float) -> float | None:
    """Our task: the median of STAMP under load."""
    del seconds
    values = site.run("responsiveness", {"direction": way}).values
    loaded_s = None if values is None else values["delay_loaded_median_s"]
    return None if loaded_s is None else float(loaded_s)


def flents_method(site: Site, way: Direction, seconds: float) -> float | None:
    """Eight streams of iperf3; after 3 s to fill the buffer, irtt until the end."""
    command = ["iperf3", "-c", PEER_V4, "-t", str(seconds + 1), "-P", "8", *(["-R"] if way == "download" else [])]
    with subprocess.Popen(
        command_in(site.near, command),
        stdout=subprocess.DEVNULL,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - only sets a flag, started from one thread
    ) as load:
        time.sleep(3)
        said_s = irtt(site, way, seconds - 3)
        load.wait()
    return said_s


@contextmanager
def busy_core() -> Iterator[None]:
    """A process that computes all the time, as another program of a probe might."""
    with subprocess.Popen(
        [sys.executable, "-c", "while True: pass"],
        preexec_fn=die_with_parent,  # noqa: PLW1509 - only sets a flag, started from one thread
    ) as hog:
        try:
            yield
        finally:
            hog.kill()


def line_bytes(site: Site) -> int:
    """What the interface has carried so far, both ways."""
    folder = f"/sys/class/net/{LINK}/statistics"
    done = site.run_near(["cat", f"{folder}/rx_bytes", f"{folder}/tx_bytes"])
    return sum(int(word) for word in done.stdout.split())


def settled_line_bytes(site: Site) -> int:
    """The same once nothing more comes: what a tool leaves under way is its own, not the next one's."""
    deadline_s = time.monotonic() + SETTLED_S_MAX
    after = line_bytes(site)
    while time.monotonic() < deadline_s:
        before = after
        time.sleep(QUIET_S)
        after = line_bytes(site)
        if after - before <= QUIET_BYTES_MAX:
            break
    return after


def start_iperf3(site: Site) -> None:
    """Its server, behind the line."""
    command = [find_program("iperf3", "iperf3"), "-s", "-p", str(IPERF3_PORT)]
    site.start_far(Service(Path(site.directory) / "iperf3", command, lambda: answers(PEER_V4, IPERF3_PORT)))


def start_irtt(site: Site) -> None:
    """Its server, behind the line, without its bound on the interval."""
    command = [find_program("irtt", "irtt"), "server", "-b", f"{PEER_V4}:{IRTT_PORT}", "-i", "0"]
    site.start_far(Service(Path(site.directory) / "irtt", command, lambda: True))
    time.sleep(0.5)


def summarize(readings: Readings) -> list[dict[str, Any]]:
    """One row for each line, direction and tool."""
    return [
        {
            "profile": profile,
            "of": of,
            "tool": name,
            "expected": statistics.median(run.expected for run in runs),
            "median": statistics.median(run.said for run in runs),
            "error_ratio": error_ratio(runs),
            "worst_error_ratio": max((run.said / run.expected - 1 for run in runs), key=abs),
            "line_bytes": statistics.median(run.line_bytes for run in runs),
        }
        for (profile, of, name), runs in readings.items()
    ]


def error_ratio(runs: list[Reading]) -> float:
    """How far off the tool was, typically."""
    return statistics.median(run.said / run.expected - 1 for run in runs)


def table(part: str, readings: Readings) -> str:
    """For people: megabits and milliseconds."""
    rates = part == "capacity"
    unit, scale = ("Mbit/s", 1e-6) if rates else ("ms", MS)
    worst = f"{'worst':>9}" if rates else ""
    rows = [f"{part}: {'line':16}{'':10}{'tool':22}{'lab ' + unit:>12}{'median':>10}{'error':>10}{'MB':>9}{worst}"]
    for row in summarize(readings):
        if part == "load":
            error = f"{row['median'] / row['expected']:>9.0%} "
        else:
            error = f"{row['error_ratio']:>+10.2%}" if rates else f"{(row['median'] - row['expected']) * MS:>+7.3f} ms"
        head = f"{'':{len(part)}}  {row['profile']:16}{row['of']:10}{row['tool']:22}"
        values = f"{row['expected'] * scale:>12.3f}{row['median'] * scale:>10.3f}"
        worst = f"{row['worst_error_ratio']:>+9.1%}" if rates else ""
        rows.append(f"{head}{values}{error}{row['line_bytes'] / 1e6:>9.2f}{worst}")
    return "\n".join(rows) + "\n"


def losses(readings: Readings) -> list[str]:
    """Where a tool was more exact than our full mode by over a percentage point."""
    found = []
    for (profile, way, name), runs in readings.items():
        lead = abs(error_ratio(readings[profile, way, "capacity"])) - abs(error_ratio(runs))
        if not name.startswith("capacity") and lead > LEAD_MAX_RATIO:
            found.append(f"{profile} {way}: {name} is more exact by {lead:.1%}")
    return found


CAPACITY_TOOLS: dict[str, RateTool] = {
    "capacity": ours,
    "capacity, capped": ours_capped,
    "iperf3": all_the_time(iperf3),
    "iperf3, 8 streams": all_the_time(iperf3_of_8),
    "curl": all_the_time(curl),
}
# Each with the payload of its packets: a packet's own length is part of its delay.
DELAY_TOOLS: dict[str, tuple[Tool, int]] = {
    "round_trip stamp": (round_trip("stamp"), 44),
    "round_trip icmp": (round_trip("icmp"), ECHO_PAYLOAD_BYTES),
    "round_trip tcp": (round_trip("tcp"), 32),
    "ping": (ping, ECHO_PAYLOAD_BYTES),
    "fping": (fping, ECHO_PAYLOAD_BYTES),
    "irtt": (irtt, 60),
}
LOAD_TOOLS: dict[str, Tool] = {"responsiveness": responsiveness, "iperf3 with irtt": flents_method}
PARTS: dict[str, Callable[[Site, str, int, float, Readings], None]] = {
    "capacity": compare_capacity,
    "delay": compare_delay,
    "load": compare_load,
}

if __name__ == "__main__":
    sys.exit(main())
