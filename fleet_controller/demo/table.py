"""What the demo measured, for people: a table that is narrow enough for 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from fleet_controller.demo.report import LinkReport

_MEGA = 1e6
_MS_PER_S = 1e3
_PERCENT = 100
Row = tuple[str, str, str, str, str]


def as_table(reports: Sequence[LinkReport]) -> Table:
    """The reports: some rows for each link, each with its number of samples."""
    title = "Read back from InfluxDB: rates of TCP payload, medians"
    table = Table(title=title, box=box.SIMPLE_HEAD, collapse_padding=True)
    for heading in ("line", "task"):
        table.add_column(heading, no_wrap=True)
    for heading in ("configured", "measured", "off by", "samples"):
        table.add_column(heading, justify="right", no_wrap=True)
    for report in reports:
        rows = _rows(report)
        heads = (report.agent_id, report.link, *[""] * (len(rows) - 2))
        for number, (head, row) in enumerate(zip(heads, rows, strict=True), start=1):
            table.add_row(head, *row, end_section=number == len(rows))
    return table


def _rows(report: LinkReport) -> list[Row]:
    """Task, configured, measured, difference, samples."""
    want, have, ways, found = report.configured, report.measured, report.capacity_samples, report.found
    hops = None if found.hop_count is None else f"{found.hop_count}"
    samples = {task: f"{count}" for task, count in report.samples.items()}
    return [
        ("download Mbit/s", *_compared(want.download_bps, have.download_bps, 1 / _MEGA), f"{ways.get('download', 0)}"),
        ("upload Mbit/s", *_compared(want.upload_bps, have.upload_bps, 1 / _MEGA), f"{ways.get('upload', 0)}"),
        ("round_trip ms", *_compared(want.rtt_s, have.rtt_s, _MS_PER_S), samples["round_trip"]),
        ("loaded delay ms", "", _shown(found.loaded_delay_s, _MS_PER_S), "", samples["responsiveness"]),
        ("loaded RPM", "", "none" if found.rpm is None else f"{found.rpm:.0f}", "", samples["responsiveness"]),
        ("available %", "", _shown(found.up_ratio, _PERCENT), "", samples["availability"]),
        ("dns ms", "", _shown(found.dns_s, _MS_PER_S), "", samples["dns"]),
        ("web ms", "", _shown(found.web_s, _MS_PER_S), "", samples["web"]),
        ("ipv6", "", found.ipv6_state or "none", "", samples["ipv6"]),
        ("path hops", "", hops or "none", "", samples["path"]),
        ("host", "", "", "", samples["host"]),
    ]


def _shown(value: float | None, scale: float) -> str:
    return "none" if value is None else f"{value * scale:.2f}"


def _compared(want: float | None, have: float | None, scale: float) -> tuple[str, str, str]:
    wanted = "" if want is None else f"{want * scale:.2f}"
    off = "" if want is None or have is None else f"{(have / want - 1) * 100:+.1f} %"
    return wanted, _shown(have, scale), off
