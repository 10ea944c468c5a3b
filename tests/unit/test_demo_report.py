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
from fleet_controller.demo.topology import (
    BROKER_ADDRESS,
    FIXED,
    MOBILE,
    PEER_ADDRESS,
    PROVINCES,
    TARGET_NETWORK,
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

AGENT = "demo-ha-noi-1"
FIXED_LINK = DemoLink(AGENT, "fixed0", "fixed0", "198.18.0.2", FIXED)
MOBILE_LINK = DemoLink(AGENT, "mobile0", "mobile0", "198.18.1.2", MOBILE)


def rows(**tags: str) -> list[dict[str, Any]]:
    """What the database would say of one link: idle round trips of 6 ms, one under load, two rates each way."""
    capacity = [("download", 144e6), ("download", 145e6), ("upload", 96e6), ("upload", 97e6)]
    delays = [(0.0061, False), (0.0060, False), (0.0062, False), (0.1, True), (0.2, True), (0.3, True), (0.4, True)]
    return [
        *({"measurement": "capacity", "direction": way, "capacity_bps": rate, **tags} for way, rate in capacity),
        *(
            {"measurement": "round_trip", "delay_median_s": delay, "fitness_own_load": load, "direction": "", **tags}
            for delay, load in delays
        ),
        {"measurement": "dns", "response_time_s": 0.006, "direction": "", **tags},
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
    assert report.samples == {"round_trip": 7, "capacity": 4, "dns": 1, "host": 1}
    assert report.missing() == []
    assert report.configured == demo_report.Figures(tcp_payload_bps(150e6), tcp_payload_bps(100e6), 0.006)


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
    assert [report.missing() for report in reports] == [[], ["round_trip", "capacity", "dns"]]
    other = DemoLink("demo-can-tho-1", "fixed0", "fixed0", "198.18.2.2", FIXED)
    assert demo_report.read_back(asked(stored), [other])[0].missing() == list(demo_report.TASKS)


@pytest.mark.parametrize(
    ("left_out", "named"),
    [
        ({"direction": "upload"}, ["capacity upload"]),
        ({"measurement": "dns"}, ["dns"]),
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


def shown(reports: list[demo_report.LinkReport]) -> str:
    """The table as text, on a terminal of the usual width, spaces folded."""
    out = io.StringIO()
    Console(file=out, width=80).print(demo_report.as_table(reports))
    assert "…" not in out.getvalue(), "a column was cut"
    return " ".join(out.getvalue().split())


def test_the_table_shows_both_sides_and_the_difference() -> None:
    """Configured, measured, how far off, and of how many samples; what is missing says so."""
    text = shown(demo_report.read_back(asked(rows(agent_id=AGENT, link="fixed0")), [FIXED_LINK, MOBILE_LINK]))
    assert "demo-ha-noi-1 download Mbit/s 144.80 144.50 -0.2 % 2 fixed0 upload Mbit/s 96.53 96.50 -0.0 % 2" in text
    assert "round_trip ms 6.00 6.10 +1.7 % 7" in text
    assert "round_trip ms 45.00 none 0" in text


@pytest.mark.parametrize("icmp", [True, False])
def test_the_written_files_are_what_the_programs_take(tmp_path: Path, *, icmp: bool) -> None:
    """The fleet file, the controller's and each probe's pass their own strict checks."""
    probes = tuple(DemoProbe(agent, "ns", (FIXED_LINK, MOBILE_LINK)) for agent in PROVINCES)
    emulated = Topology("core", PEER_ADDRESS, BROKER_ADDRESS, TARGET_NETWORK, probes)
    for number, topology in enumerate((emulated, loopback())):
        directory = tmp_path / str(number)
        directory.mkdir()
        servers = Servers(1883, "http://198.18.255.2:8086", "198.18.255.1:53", 8080, 8862)
        files = write_files(directory, topology, servers, icmp=icmp)
        fleet = load_fleet(directory / "fleet.yaml")
        assert set(fleet.probes) == set(PROVINCES) == set(files.probes)
        actions = {action.label for schedule in fleet.schedules.values() for action in schedule.actions}
        assert ("icmp" in actions) == icmp
        assert load_controller(files.controller).influxdb.url == servers.influxdb_url
        for agent_id, path in files.probes.items():
            config = load_probe(path)
            assert config.agent_id == agent_id
            assert [link.name for link in config.links] == ["fixed0", "mobile0"]
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
    assert lines[0] == (
        "90 s left: in InfluxDB round_trip 7, capacity 4, dns 1, host 1; measuring demo-ha-noi-1 fixed0 capacity"
    )


def test_on_a_terminal_the_view_is_a_table_of_the_links() -> None:
    """Each link with what is measured on it, the host's tasks included, and what landed."""
    out = io.StringIO()
    stored = demo_report.counts(asked(rows(agent_id=AGENT, link="fixed0")))
    with View(Console(file=out, width=200, force_terminal=True), [FIXED_LINK, MOBILE_LINK]) as view:
        view.show(0.0, None, [(AGENT, "mobile0", "capacity"), (AGENT, "", "host")], stored)
    text = out.getvalue()
    assert "capacity, host" in text
    assert "round_trip 7  capacity 4  dns 1  host 1" in text
    assert "13 results in InfluxDB" in text
