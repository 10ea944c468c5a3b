"""What the demo measured, read back from the database: per link, configured beside measured."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fleet_controller.demo.topology import DemoLink
from fleet_controller.lab.line import tcp_payload_bps

Rows = list[dict[str, Any]]
Query = Callable[[str], Rows]
# Every kind of task that the demo schedules; `host` is of the probe and counts for each of its links.
TASKS = ("round_trip", "capacity", "responsiveness", "availability", "dns", "web", "ipv6", "path", "host")
# The loopback is no line: it has no IPv6 that leads anywhere, and no way that routers would be on.
_OF_LINES_ALONE = frozenset({"ipv6", "path"})
_DIRECTIONS = ("download", "upload")
# The columns that are read of each task; the first one is in every measured result.
_COLUMNS = {
    "round_trip": ("packets_sent", "delay_median_s"),
    "capacity": ("capacity_bps",),
    "responsiveness": ("load_bps", "rpm", "delay_loaded_median_s"),
    "availability": ("window_s", "up_s", "unknown_s"),
    "dns": ("response_time_s",),
    "web": ("total_s",),
    "ipv6": ("state",),
    "path": ("reached", "hop_count"),
    "host": ("outcome",),
}
# What waits behind our own bulk transfer is the buffer's delay, not the line's: such results are told apart.
_OF_THE_IDLE_LINE = frozenset({"round_trip", "dns", "web"})


@dataclass(frozen=True, slots=True)
class Figures:
    """A line in three numbers: TCP payload rates and the median round-trip delay. Absent is None."""

    download_bps: float | None = None
    upload_bps: float | None = None
    rtt_s: float | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What was measured where nothing was configured to compare with. Absent is None.

    `loaded_delay_s` and `rpm` are medians of the line that is busy with a download, `dns_s` and `web_s` of the idle
    one; `up_ratio` is the share of the watched time in which the peer could be reached; `ipv6_state` and `hop_count`
    are what most results say.
    """

    loaded_delay_s: float | None = None
    rpm: float | None = None
    up_ratio: float | None = None
    dns_s: float | None = None
    web_s: float | None = None
    ipv6_state: str | None = None
    hop_count: int | None = None


@dataclass(frozen=True, slots=True)
class LinkReport:
    """One link: what it was built to be, what was measured, how many samples of each task, of capacity by direction."""

    agent_id: str
    link: str
    configured: Figures
    measured: Figures
    samples: dict[str, int]
    capacity_samples: dict[str, int] = field(default_factory=dict)
    found: Found = field(default_factory=Found)

    def missing(self) -> list[str]:
        """What has no sample and should have some."""
        optional = _OF_LINES_ALONE if self.configured == Figures() else frozenset()
        absent = [task for task in TASKS if not self.samples.get(task) and task not in optional]
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
    columns = [*_COLUMNS[task], *(("fitness_own_load",) if task in _OF_THE_IDLE_LINE else ())]
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
    rates = {way: _median(mine["capacity"], "capacity_bps", direction=way) for way in _DIRECTIONS}
    return LinkReport(
        agent_id=link.agent_id,
        link=link.name,
        configured=configured(link),
        measured=Figures(rates["download"], rates["upload"], _idle_median(mine["round_trip"], "delay_median_s")),
        samples={task: len(found) for task, found in mine.items()},
        capacity_samples=Counter(str(row.get("direction")) for row in mine["capacity"]),
        found=_found(mine),
    )


def _found(mine: dict[str, Rows]) -> Found:
    watched = mine["availability"]
    # Time in which nobody watched is neither up nor down.
    watched_s = sum(row["window_s"] - row["unknown_s"] for row in watched)
    return Found(
        loaded_delay_s=_median(mine["responsiveness"], "delay_loaded_median_s"),
        rpm=_median(mine["responsiveness"], "rpm"),
        up_ratio=sum(row["up_s"] for row in watched) / watched_s if watched_s else None,
        dns_s=_idle_median(mine["dns"], "response_time_s"),
        web_s=_idle_median(mine["web"], "total_s"),
        ipv6_state=_most_common(mine["ipv6"], "state"),
        hop_count=_most_common(mine["path"], "hop_count"),
    )


def _belongs(row: dict[str, Any], link: DemoLink, task: str) -> bool:
    return row.get("agent_id") == link.agent_id and (task == "host" or row.get("link") == link.name)


def _median(rows: Rows, column: str, **wanted: str) -> float | None:
    chosen = (row for row in rows if all(row.get(tag) == value for tag, value in wanted.items()))
    present = [row[column] for row in chosen if row.get(column) is not None]
    return statistics.median(present) if present else None


def _idle_median(rows: Rows, column: str) -> float | None:
    return _median([row for row in rows if not row.get("fitness_own_load")], column)


def _most_common(rows: Rows, column: str) -> Any:
    present = Counter(row[column] for row in rows if row.get(column) is not None)
    return present.most_common(1)[0][0] if present else None


def as_json(reports: Sequence[LinkReport]) -> dict[str, Any]:
    """The reports for programs: rates as TCP payload in bit/s, delay as median, on both sides."""
    wanted = ("agent_id", "link", "configured", "measured", "samples")
    return {"links": [{name: asdict(report)[name] for name in wanted} for report in reports]}
