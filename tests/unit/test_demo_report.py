"""The demo's answer: what is read back, what is missing, and how it is shown."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from fleet_controller.config import load as load_controller
from fleet_controller.demo import report as demo_report
from fleet_controller.demo.files import RESOLVED_NAME, Servers, write_files
from fleet_controller.demo.table import as_table
from fleet_controller.demo.topology import (
    BROKER_ADDRESS,
    FIXED,
    MOBILE,
    PEER_ADDRESS,
    PEER_ADDRESS_V6,
    PROVINCES,
    TARGET_NETWORKS,
    DemoLink,
    DemoProbe,
    Topology,
    loopback,
)
from fleet_controller.demo.view import View, Watcher
from fleet_controller.fleet.load import load_fleet
from fleet_controller.lab.line import tcp_payload_bps
from probe.config import load as load_probe
from probe.messages import topic
from probe.tasks import TASKS

AGENT = "demo-ha-noi-1"
FIXED_LINK = DemoLink(AGENT, "fixed0", "fixed0", "198.18.0.2", FIXED)
MOBILE_LINK = DemoLink(AGENT, "mobile0", "mobile0", "198.18.1.2", MOBILE)


LOADED: list[dict[str, Any]] = [{"rpm": 600.0, "delay_loaded_median_s": 0.1}, {"rpm": None}]
# The first window of a start has a moment in which nobody watches yet.
WINDOWS = [{"window_s": 10.0, "unknown_s": 1.0, "up_s": 9.0}, {"window_s": 20.0, "unknown_s": 0.0, "up_s": 5.5}]
WEB_S = (0.020, 0.020, 0.022, 0.3)
COUNTED = "round_trip 7, capacity 4, responsiveness 2, availability 2, dns 1, web 4, ipv6 3, path 3, host 1"
SAMPLES = {task: int(count) for task, count in (words.split() for words in COUNTED.split(", "))}


def rows(**tags: str) -> list[dict[str, Any]]:
    """What the database would say of one link: idle round trips of 6 ms, others under load, two rates each way."""
    capacity = [("download", 144e6), ("download", 145e6), ("upload", 96e6), ("upload", 97e6)]
    delays = [(0.0061, False), (0.0060, False), (0.0062, False), (0.1, True), (0.2, True), (0.3, True), (0.4, True)]
    return [
        *({"measurement": "capacity", "direction": way, "capacity_bps": rate, **tags} for way, rate in capacity),
        *(
            {"measurement": "round_trip", "delay_median_s": delay, "fitness_own_load": load, "direction": "", **tags}
            for delay, load in delays
        ),
        *({"measurement": "responsiveness", "load_bps": 144e6, **tags, **one} for one in LOADED),
        *({"measurement": "availability", **tags, **one} for one in WINDOWS),
        {"measurement": "dns", "response_time_s": 0.006, "direction": "", **tags},
        *({"measurement": "web", "total_s": total_s, "fitness_own_load": total_s > 0.1, **tags} for total_s in WEB_S),
        *({"measurement": "ipv6", "state": state, **tags} for state in ("unreachable", "works", "works")),
        *({"measurement": "path", "reached": hops is not None, "hop_count": hops, **tags} for hops in (None, 1, 1)),
        {"measurement": "host", "outcome": "values", "direction": "", "agent_id": tags["agent_id"], "link": ""},
    ]


def asked(stored: list[dict[str, Any]]) -> demo_report.Query:
    """A database that has these rows."""

    def query(influxql: str) -> list[dict[str, Any]]:
        return [row for row in stored if f'FROM "{row["measurement"]}"' in influxql]

    return query


def test_a_link_is_its_medians_and_its_counts() -> None:
    """Rates by direction, the delay without results under the probe's own load, every sample counted."""
    (report,) = demo_report.read_back(asked(rows(agent_id=AGENT, link="fixed0")), [FIXED_LINK])
    assert report.measured == demo_report.Figures(144.5e6, 96.5e6, 0.0061)
    assert report.samples == SAMPLES
    assert report.missing() == []
    assert report.configured == demo_report.Figures(tcp_payload_bps(150e6), tcp_payload_bps(100e6), 0.006)


def test_what_was_not_configured_is_found() -> None:
    """Medians, of the idle line where that matters; the share of the time that was watched; what most results say."""
    (report,) = demo_report.read_back(asked(rows(agent_id=AGENT, link="fixed0")), [FIXED_LINK])
    assert report.found == demo_report.Found(
        loaded_delay_s=0.1,
        rpm=600.0,
        up_ratio=0.5,
        dns_s=0.006,
        web_s=0.020,
        ipv6_state="works",
        hop_count=1,
    )


def test_the_json_has_exactly_the_agreed_keys() -> None:
    """What scripts read."""
    (report,) = demo_report.read_back(asked(rows(agent_id=AGENT, link="fixed0")), [FIXED_LINK])
    (link,) = demo_report.as_json([report])["links"]
    assert set(link) == {"agent_id", "link", "configured", "measured", "samples"}
    assert set(link["configured"]) == set(link["measured"]) == {"download_bps", "upload_bps", "rtt_s"}


def test_one_links_results_are_not_anothers() -> None:
    """A link without results misses every task of its own; the host's results count for each link of the probe."""
    stored = rows(agent_id=AGENT, link="fixed0")
    reports = demo_report.read_back(asked(stored), [FIXED_LINK, MOBILE_LINK])
    of_links = [task for task in demo_report.TASKS if task != "host"]
    assert [report.missing() for report in reports] == [[], of_links]
    other = DemoLink("demo-can-tho-1", "fixed0", "fixed0", "198.18.2.2", FIXED)
    assert demo_report.read_back(asked(stored), [other])[0].missing() == list(demo_report.TASKS)


@pytest.mark.parametrize(
    ("left_out", "named"),
    [
        ({"direction": "upload"}, ["capacity upload"]),
        ({"measurement": "dns"}, ["dns"]),
        ({"measurement": "responsiveness"}, ["responsiveness"]),
        ({"measurement": "availability"}, ["availability"]),
        ({"measurement": "ipv6"}, ["ipv6"]),
        ({"fitness_own_load": False}, ["round_trip on an idle line"]),
        ({"measurement": "host"}, ["host"]),
    ],
)
def test_what_is_missing_is_named(left_out: dict[str, Any], named: list[str]) -> None:
    """One direction, one task, or a delay on the idle line: the demo fails and says which."""
    stored = [
        row
        for row in rows(agent_id=AGENT, link="fixed0")
        if not all(row.get(key, ...) == value for key, value in left_out.items())
    ]
    assert demo_report.read_back(asked(stored), [FIXED_LINK])[0].missing() == named


def test_on_the_loopback_nothing_is_configured() -> None:
    """Absent, not zero."""
    link = loopback().links[0]
    assert demo_report.configured(link) == demo_report.Figures(None, None, None)


def test_the_loopback_needs_no_ipv6_and_no_path() -> None:
    """It is no line: everything else has to be measured on it."""
    link = loopback().links[0]
    stored = rows(agent_id=link.agent_id, link=link.name)
    without = [row for row in stored if row["measurement"] not in {"ipv6", "path"}]
    assert demo_report.read_back(asked(without), [link])[0].missing() == []
    nothing = demo_report.read_back(asked([]), [link])[0].missing()
    assert nothing == [task for task in demo_report.TASKS if task not in {"ipv6", "path"}]


def shown(reports: list[demo_report.LinkReport]) -> str:
    """The table as text, on a terminal of the usual width, spaces folded."""
    out = io.StringIO()
    Console(file=out, width=80).print(as_table(reports))
    assert "…" not in out.getvalue(), "a column was cut"
    return " ".join(out.getvalue().split())


def test_the_table_shows_both_sides_and_the_difference() -> None:
    """Configured, measured, how far off, and of how many samples; what is missing says so."""
    text = shown(demo_report.read_back(asked(rows(agent_id=AGENT, link="fixed0")), [FIXED_LINK, MOBILE_LINK]))
    assert "demo-ha-noi-1 download Mbit/s 144.80 144.50 -0.2 % 2 fixed0 upload Mbit/s 96.53 96.50 -0.0 % 2" in text
    assert "round_trip ms 6.00 6.10 +1.7 % 7" in text
    assert "round_trip ms 45.00 none 0" in text
    assert "loaded delay ms 100.00 2 loaded RPM 600 2 available % 50.00 2" in text
    assert "dns ms 6.00 1 web ms 20.00 4 ipv6 works 3 path hops 1 3 host 1" in text
    assert "loaded RPM none 0 available % none 0 dns ms none 0 web ms none 0 ipv6 none 0 path hops none 0" in text


def test_the_widest_words_leave_the_table_its_width() -> None:
    """The loopback's rates and the longest state of IPv6 fit into 80 columns."""
    link = loopback().links[0]
    stored = [
        row | ({"state": "mtu_black_hole"} if row["measurement"] == "ipv6" else {"capacity_bps": 123_456e6})
        for row in rows(agent_id=link.agent_id, link=link.name)
    ]
    text = shown(demo_report.read_back(asked(stored), [link]))
    assert "123456.00" in text
    assert "ipv6 mtu_black_hole 3" in text


@pytest.mark.parametrize("icmp", [True, False])
def test_the_written_files_are_what_the_programs_take(tmp_path: Path, *, icmp: bool) -> None:
    """The fleet file, the controller's and each probe's pass their own strict checks."""
    probes = tuple(DemoProbe(agent, "ns", (FIXED_LINK, MOBILE_LINK)) for agent in PROVINCES)
    emulated = Topology("core", (PEER_ADDRESS, PEER_ADDRESS_V6), BROKER_ADDRESS, TARGET_NETWORKS, probes)
    for number, topology in enumerate((emulated, loopback())):
        directory = tmp_path / str(number)
        directory.mkdir()
        resolvers = ("198.18.255.1:53", f"[{PEER_ADDRESS_V6}]:53")
        servers = Servers(1883, "http://198.18.255.2:8086", resolvers, 8080, 8862)
        files = write_files(directory, topology, servers, icmp=icmp)
        fleet = load_fleet(directory / "fleet.yaml")
        assert set(fleet.probes) == set(PROVINCES) == set(files.probes)
        actions = {action.label for schedule in fleet.schedules.values() for action in schedule.actions}
        assert ("icmp" in actions) == icmp
        scheduled = {action.task for schedule in fleet.schedules.values() for action in schedule.actions}
        assert scheduled == set(demo_report.TASKS) == set(TASKS)
        assert load_controller(files.controller).influxdb.url == servers.influxdb_url
        for agent_id, path in files.probes.items():
            config = load_probe(path)
            assert config.agent_id == agent_id
            assert [link.name for link in config.links] == ["fixed0", "mobile0"]
            assert config.links[0].resolvers == resolvers
    assert RESOLVED_NAME.endswith(".test")


def heard(watcher: Watcher, payload: bytes) -> None:
    """Hand the watcher a message."""
    message = type("Message", (), {"payload": payload, "topic": topic(AGENT, "progress")})()
    watcher._on_message(watcher._client, None, message)


def progress(state: str, task: str = "dns", link: str | None = "fixed0") -> bytes:
    """One progress message."""
    return msgspec.json.encode(
        {"agent_id": AGENT, "task": task, "state": state, "at_unix_ns": 1, "link": link, "future": True}
    )


def test_the_watcher_knows_what_runs() -> None:
    """Started until finished; garbage and unknown fields change nothing; a finish without a start is nothing."""
    watcher = Watcher("127.0.0.1", 1)
    heard(watcher, progress("started"))
    heard(watcher, b"\xff garbage")
    heard(watcher, progress("finished", "capacity"))
    assert watcher.running() == [(AGENT, "fixed0", "dns")]
    heard(watcher, progress("finished"))
    heard(watcher, progress("started", "host", None))
    assert watcher.running() == [(AGENT, "", "host")]


def test_without_a_terminal_the_view_prints_a_line_now_and_then() -> None:
    """Not one per tick: every ten seconds, with what runs and what landed."""
    out = io.StringIO()
    stored = demo_report.counts(asked(rows(agent_id=AGENT, link="fixed0")))
    with View(Console(file=out, width=200), [FIXED_LINK]) as view:
        for now_s in range(21):
            view.show(now_s, 90.0 - now_s, [(AGENT, "fixed0", "capacity")], stored)
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0] == f"90 s left: in InfluxDB {COUNTED}; measuring demo-ha-noi-1 fixed0 capacity"


def test_on_a_terminal_the_view_is_a_table_of_the_links() -> None:
    """Each link with what is measured on it, the host's tasks included, and what landed; 80 columns are enough."""
    out = io.StringIO()
    stored = demo_report.counts(asked(rows(agent_id=AGENT, link="fixed0")))
    stored[AGENT, "fixed0", "round_trip"] = 1007
    stored[AGENT, "fixed0", "responsiveness"] = 1002
    running = [(AGENT, "mobile0", "responsiveness"), (AGENT, "", "host")]
    with View(Console(file=out, width=80, force_terminal=True), [FIXED_LINK, MOBILE_LINK]) as view:
        view.show(0.0, None, running, stored)
    text = out.getvalue()
    assert "…" not in text
    for words in (
        "round_trip 1007  capacity 4",
        "responsiveness 1002  availability 2",
        "web 4  ipv6 3  path 3  host 1",
    ):
        assert words in text
    assert max(len(line) for line in text.splitlines() if "│" in line) <= 80
    cells = [[cell.strip() for cell in line.split("│")[1:3]] for line in text.splitlines() if line.startswith("│")]
    assert [AGENT, "responsiveness"] in cells
    assert ["mobile0", "host"] in cells
    assert "2027 results in InfluxDB" in text
