"""Every profile measured by `round_trip` and `capacity`, in full and with a cap: what that says of the instruments."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from fleet_controller.errors import ServiceError
from fleet_controller.lab.compare import compare
from fleet_controller.lab.comparison import Comparison, as_builtins, outcome
from fleet_controller.lab.profile import DIRECTIONS, Direction, LinkProfile
from fleet_controller.lab.site import Run, Site

_ROUND_TRIP: Final = {"packets": 200, "interval_s": 0.02}
# A capped measurement may spend so much of what ten seconds at the line's rate would.
_TEN_SECONDS: Final = 10.0
_CAP_RATIO: Final = 0.2
_CAP_BYTES_MIN: Final = 100_000
_BYTES_PER_GB: Final = 1e9
# What the instruments promise: shares of the rate.
FULL_MEDIAN_MAX, FULL_WORST_MAX, CAPPED_MEDIAN_MAX, AGREEMENT_MAX = 0.02, 0.05, 0.08, 0.02


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement of the matrix, to be repeated."""

    profile: str
    task: str
    mode: str
    parameters: Mapping[str, Any]

    @property
    def name(self) -> str:
        """For people."""
        return " ".join(filter(None, (self.task, str(self.parameters.get("direction", "")), self.mode)))


@dataclass(slots=True)
class Row:
    """What the runs of one case said."""

    case: Case
    is_carried: bool
    comparisons: list[tuple[Comparison, ...]] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)
    transferred_bytes: list[int] = field(default_factory=list)
    cpu_s_per_gb: list[float] = field(default_factory=list)

    @property
    def has_values(self) -> bool:
        """Whether any run measured something to compare."""
        return bool(self.comparisons)

    @property
    def is_as_expected(self) -> bool:
        """Whether every run measured; on a line that carries no full packets, whether none did."""
        return all((said == "measured") == self.is_carried for said in self.outcomes) and bool(self.outcomes)

    def median(self, index: int = 0) -> Comparison | None:
        """Medians of one figure over the runs."""
        found = [one[index] for one in self.comparisons if one[index].measured is not None]
        if not found:
            return None
        measured = statistics.median(one.measured for one in found if one.measured is not None)
        configured = statistics.median(one.configured for one in found)
        return Comparison(found[0].what, found[0].unit, configured, measured)

    def error_ratios(self) -> list[float]:
        """The error of each run's rate."""
        return [error for one in self.comparisons if (error := one[0].error_ratio) is not None]

    def agreement_ratio(self) -> float | None:
        """How far the runs' errors are apart, as a share of the rate; absent for a single run."""
        errors = self.error_ratios()
        return max(errors) - min(errors) if len(errors) > 1 else None


def cases_of(name: str, profile: LinkProfile) -> Iterator[Case]:
    """The measurements of one profile."""
    version = {} if 4 in profile.ip_versions else {"ip_version": 6}  # noqa: PLR2004 - the IP version
    yield Case(name, "round_trip", "", _ROUND_TRIP | version)
    for direction in DIRECTIONS:
        yield Case(name, "capacity", "full", {"direction": direction} | version)
        capped = {"direction": direction, "mode": "capped", "max_bytes": _cap_bytes(profile, direction)}
        yield Case(name, "capacity", "capped", capped | version)


def ten_second_bytes(profile: LinkProfile, direction: Direction) -> float:
    """The payload of ten seconds at the line's rate: what a usual test spends."""
    return profile.expected_capacity_bps(direction) * _TEN_SECONDS / 8


def _cap_bytes(profile: LinkProfile, direction: Direction) -> int:
    return max(round(ten_second_bytes(profile, direction) * _CAP_RATIO), _CAP_BYTES_MIN)


def run_matrix(
    profiles: Mapping[str, LinkProfile], runs: int, said: Callable[[Case, int, str], None], *, nginx: bool = False
) -> list[Row]:
    """Measure everything `runs` times; `said` hears of each run when it has ended.

    Raises:
        ServiceError: the lab cannot be built.
    """
    rows: list[Row] = []
    for name, profile in profiles.items():
        with Site(profile, nginx=nginx) as site:
            for case in cases_of(name, profile):
                row = Row(case, is_carried=profile.carries_full_packets or case.task == "round_trip")
                rows.append(row)
                for number in range(runs):
                    said(case, number, _measure(site, row, "nginx" if nginx and case.task == "capacity" else "peer"))
    return rows


def _measure(site: Site, row: Row, peer: str) -> str:
    try:
        run = site.measure(row.case.task, row.case.parameters, peer=peer)
    except ServiceError as error:  # the program crashed or hung: the others are measured all the same
        row.outcomes.append(f"broken: {error}")
        return row.outcomes[-1]
    row.outcomes.append(outcome(run.result))
    figures = compare(site, run, row.case.parameters)
    compared = tuple(one for one in figures if isinstance(one, Comparison))
    if compared:
        row.comparisons.append(compared)
        _count_cost(row, run)
    return row.outcomes[-1]


def _count_cost(row: Row, run: Run) -> None:
    values = run.result.values or {}
    if not (spent_bytes := values.get("transferred_bytes")):
        row.transferred_bytes.append(run.result.bytes_sent + run.result.bytes_received)
        return
    row.transferred_bytes.append(spent_bytes)
    if values.get("cpu_ratio") is not None:
        row.cpu_s_per_gb.append(values["cpu_ratio"] * values["transfer_s"] / spent_bytes * _BYTES_PER_GB)


class Summary(msgspec.Struct, frozen=True):
    """The matrix in a few figures: errors as shares of the rate, absent where nothing was measured."""

    unexpected: int
    full_error_median_ratio: float | None
    full_error_worst_ratio: float | None
    capped_error_median_ratio: float | None
    capped_bytes_ratio_max: float | None
    agreement_worst_ratio: float | None
    delay_error_median_s: float | None
    delay_error_worst_s: float | None

    @property
    def is_good(self) -> bool:
        """Whether everything was measured as expected and within what the instruments promise."""
        bounds = (
            (self.full_error_median_ratio, FULL_MEDIAN_MAX),
            (self.full_error_worst_ratio, FULL_WORST_MAX),
            (self.capped_error_median_ratio, CAPPED_MEDIAN_MAX),
        )
        return self.unexpected == 0 and all(value is None or value <= most for value, most in bounds)


def summarise(rows: Sequence[Row], profiles: Mapping[str, LinkProfile]) -> Summary:
    """What the rows say together. The worst error is that of a profile's median over its runs."""
    full = [row for row in rows if row.case.mode == "full" and row.has_values]
    capped = [row for row in rows if row.case.mode == "capped" and row.has_values]
    delays_s = [
        abs(error_s)
        for row in rows
        if row.case.task == "round_trip" and (one := row.median()) is not None and (error_s := one.error_s) is not None
    ]
    full_errors = [abs(statistics.median(row.error_ratios())) for row in full]
    capped_errors = [abs(statistics.median(row.error_ratios())) for row in capped]
    return Summary(
        unexpected=sum(not row.is_as_expected for row in rows),
        full_error_median_ratio=_median(full_errors),
        full_error_worst_ratio=max(full_errors, default=None),
        capped_error_median_ratio=_median(capped_errors),
        capped_bytes_ratio_max=max((_bytes_ratio(row, profiles) for row in capped), default=None),
        agreement_worst_ratio=max(
            (ratio for row in full if (ratio := row.agreement_ratio()) is not None), default=None
        ),
        delay_error_median_s=_median(delays_s),
        delay_error_worst_s=max(delays_s, default=None),
    )


def _bytes_ratio(row: Row, profiles: Mapping[str, LinkProfile]) -> float:
    direction: Direction = "upload" if row.case.parameters["direction"] == "upload" else "download"
    return max(row.transferred_bytes) / ten_second_bytes(profiles[row.case.profile], direction)


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def row_as_builtins(row: Row) -> dict[str, Any]:
    """A row for programs: every run's figures."""
    return {
        "profile": row.case.profile,
        "task": row.case.task,
        "mode": row.case.mode or None,
        "parameters": dict(row.case.parameters),
        "outcomes": row.outcomes,
        "as_expected": row.is_as_expected,
        "runs": [[as_builtins(one) for one in run] for run in row.comparisons],
        "agreement_ratio": row.agreement_ratio(),
        "transferred_bytes": row.transferred_bytes,
        "cpu_s_per_gb": row.cpu_s_per_gb,
    }
