"""What the demo measured, read back from the database: per link, configured beside measured."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich import box
from rich.table import Table

from fleet_controller.demo.topology import DemoLink
from fleet_controller.lab.line import tcp_payload_bps

Rows = list[dict[str, Any]]
Query = Callable[[str], Rows]
# Every kind of task that the demo schedules; `host` is of the probe and counts for each of its links.
TASKS = ("round_trip", "capacity", "dns", "host")
_DIRECTIONS = ("download", "upload")
# One column of each task that every measured result has.
_PRESENT = {"round_trip": "packets_sent", "capacity": "capacity_bps", "dns": "response_time_s", "host": "outcome"}
_MEGA = 1e6
_MS_PER_S = 1e3


@dataclass(frozen=True, slots=True)
class Figures:
    """A line in three numbers: TCP payload rates and the median round-trip delay. Absent is None."""

    download_bps: float | None = None
    upload_bps: float | None = None
    rtt_s: float | None = None


@dataclass(frozen=True, slots=True)
class LinkReport:
    """One link: what it was built to be, what was measured, how many samples of each task, of capacity by direction."""

    agent_id: str
    link: str
    configured: Figures
    measured: Figures
    samples: dict[str, int]
    capacity_samples: dict[str, int] = field(default_factory=dict)

    def missing(self) -> list[str]:
        """What has no sample."""
        absent = [task for task in TASKS if not self.samples.get(task)]
        rates = (("download", self.measured.download_bps), ("upload", self.measured.upload_bps))
        absent += [f"capacity {way}" for way, rate in rates if rate is None and "capacity" not in absent]
        if self.measured.rtt_s is None and "round_trip" not in absent:
            absent.append("round_trip on an idle line")
        return absent


def configured(link: DemoLink) -> Figures:
    """What a perfect measurement of the line gives; nothing is known of the loopback."""
    if link.profile is None:
        return Figures()
    return Figures(
        tcp_payload_bps(link.profile.download_bps), tcp_payload_bps(link.profile.upload_bps), link.profile.delay_s
    )


def read_back(query: Query, links: Sequence[DemoLink]) -> list[LinkReport]:
    """Ask the database for everything that was measured.

    Raises:
        StoreError: no answer.
    """
    rows = {task: query(_question(task)) for task in TASKS}
    return [_link_report(link, rows) for link in links]


def counts(query: Query) -> Counter[tuple[str, str, str]]:
    """How many measured results are stored, by (agent id, link, task); the link of a host result is empty."""
    return Counter(
        (row.get("agent_id", ""), row.get("link") or "", task) for task in TASKS for row in query(_question(task))
    )


def _question(task: str) -> str:
    columns = [_PRESENT[task], *(("delay_median_s", "fitness_own_load") if task == "round_trip" else ())]
    # Only tags that the task has: InfluxDB 3 refuses to group by others.
    tags = ["agent_id", *(("link",) if task != "host" else ()), *(("direction",) if task == "capacity" else ())]
    return (
        f"SELECT {_quoted(columns)} FROM {_quoted([task])} "  # noqa: S608 - no word of it comes from outside
        # A demo that is kept running for a week is judged by all of it.
        f"WHERE \"outcome\" = 'values' AND time > now() - 7d GROUP BY {_quoted(tags)}"
    )


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _link_report(link: DemoLink, rows: dict[str, Rows]) -> LinkReport:
    mine = {task: [row for row in found if _belongs(row, link, task)] for task, found in rows.items()}
    rates = {
        way: _median(row["capacity_bps"] for row in mine["capacity"] if row.get("direction") == way)
        for way in _DIRECTIONS
    }
    # What waits behind our own bulk transfer is the buffer's delay, not the line's.
    delay_s = _median(row["delay_median_s"] for row in mine["round_trip"] if not row.get("fitness_own_load"))
    return LinkReport(
        agent_id=link.agent_id,
        link=link.name,
        configured=configured(link),
        measured=Figures(rates["download"], rates["upload"], delay_s),
        samples={task: len(found) for task, found in mine.items()},
        capacity_samples=Counter(str(row.get("direction")) for row in mine["capacity"]),
    )


def _belongs(row: dict[str, Any], link: DemoLink, task: str) -> bool:
    return row.get("agent_id") == link.agent_id and (task == "host" or row.get("link") == link.name)


def _median(values: Any) -> float | None:
    present = [value for value in values if value is not None]
    return statistics.median(present) if present else None


def as_json(reports: Sequence[LinkReport]) -> dict[str, Any]:
    """The reports for programs: rates as TCP payload in bit/s, delay as median, on both sides."""
    wanted = ("agent_id", "link", "configured", "measured", "samples")
    return {"links": [{name: asdict(report)[name] for name in wanted} for report in reports]}


def as_table(reports: Sequence[LinkReport]) -> Table:
    """The reports for people, narrow enough for 80 columns: some rows for each link."""
    table = Table(title="Read back from InfluxDB: rates of TCP payload, median delay", box=box.SIMPLE_HEAD)
    for heading in ("line", "task"):
        table.add_column(heading, no_wrap=True)
    for heading in ("configured", "measured", "off by", "samples"):
        table.add_column(heading, justify="right", no_wrap=True)
    for report in reports:
        heads = (report.agent_id, report.link, "", "", "")
        for head, row in zip(heads, _table_rows(report), strict=True):
            table.add_row(head, *row, end_section=row[0] == TASKS[-1])
    return table


def _table_rows(report: LinkReport) -> list[tuple[str, str, str, str, str]]:
    """Task, configured, measured, difference, samples."""
    want, have, samples, ways = report.configured, report.measured, report.samples, report.capacity_samples
    return [
        ("download Mbit/s", *_compared(want.download_bps, have.download_bps, 1 / _MEGA), f"{ways.get('download', 0)}"),
        ("upload Mbit/s", *_compared(want.upload_bps, have.upload_bps, 1 / _MEGA), f"{ways.get('upload', 0)}"),
        ("round_trip ms", *_compared(want.rtt_s, have.rtt_s, _MS_PER_S), f"{samples['round_trip']}"),
        ("dns", "", "", "", f"{samples['dns']}"),
        ("host", "", "", "", f"{samples['host']}"),
    ]


def _compared(want: float | None, have: float | None, scale: float) -> tuple[str, str, str]:
    shown = ["" if value is None else f"{value * scale:.2f}" for value in (want, have)]
    off = "" if want is None or have is None else f"{(have / want - 1) * 100:+.1f} %"
    return shown[0], shown[1] or "none", off
