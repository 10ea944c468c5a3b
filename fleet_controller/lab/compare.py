"""Configured against measured: what a run says beside what the line was made to be."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec

from fleet_controller.lab.profile import Direction
from fleet_controller.lab.site import Run, Site
from probe.messages import Result

_NS_PER_S: Final = 1_000_000_000
# The payload of the STAMP packets that `round_trip` sends unless told otherwise (RFC 8762 section 4.2.1).
_STAMP_BYTES: Final = 44


class Comparison(msgspec.Struct, frozen=True):
    """One figure: what a perfect instrument would have said, what ours said, and by how much it is off.

    `error_ratio` is for rates (measured / configured - 1), `error_s` for delays (measured - configured).
    """

    what: str
    unit: Literal["bps", "s", "ratio"]
    configured: float
    measured: float | None

    @property
    def error_ratio(self) -> float | None:
        """Relative error of a rate."""
        if self.measured is None or self.unit != "bps":
            return None
        return self.measured / self.configured - 1

    @property
    def error_s(self) -> float | None:
        """Error of a delay."""
        return None if self.measured is None or self.unit != "s" else self.measured - self.configured


def compare(site: Site, run: Run) -> tuple[Comparison, ...]:
    """The figures of one run that the line decides; none for a task of which it decides none, or that failed."""
    compare_task = _TASKS.get(run.result.task)
    return compare_task(site, run) if compare_task is not None and run.result.values is not None else ()


def _round_trip(site: Site, run: Run) -> tuple[Comparison, ...]:
    values = run.result.values or {}
    version = _ip_version(run.result)
    profile = site.profile
    delay_s = profile.expected_delay_s(_STAMP_BYTES, version) - profile.delay_s + site.delay_s
    sent, received = values["packets_sent"], values["packets_received"]
    return (
        Comparison("delay_median", "s", delay_s, values.get("delay_median_s")),
        Comparison("pdv", "s", profile.expected_pdv_s(), values.get("pdv_s")),
        Comparison("loss", "ratio", profile.expected_loss_ratio(), 1 - received / sent if sent else None),
    )


def _capacity(site: Site, run: Run) -> tuple[Comparison, ...]:
    values = run.result.values or {}
    direction: Direction = "upload" if run.result.variant.get("direction") == "upload" else "download"
    nominal_bps = site.profile.expected_capacity_bps(direction, _ip_version(run.result))
    mean_bps = site.link.mean_rate_bps(direction, *_steady_interval(site, run, direction))
    expected_bps = nominal_bps * mean_bps / site.profile.rate_bps(direction)
    return (Comparison(direction, "bps", expected_bps, values["capacity_bps"]),)


def _steady_interval(site: Site, run: Run, direction: Direction) -> tuple[int, int]:
    """When the bytes of the steady part passed the serialiser, on CLOCK_MONOTONIC.

    A received byte is half a round trip old when it is counted, an acknowledged one a whole one. A lower bound has no
    steady part: there it is the transfer; without a curve, the whole run.
    """
    values = run.result.values or {}
    curve = values.get("curve")
    if not curve:
        return run.began_ns, run.ended_ns
    steady_s = values.get("steady_s") or values["transfer_s"]
    age_s = site.delay_s * (0.5 if direction == "download" else 1.0)
    began_ns = run.result.start_unix_ns - (time.time_ns() - time.monotonic_ns())
    if not run.began_ns <= began_ns <= run.ended_ns:  # the wall clock was stepped: only roughly, then
        began_ns = run.began_ns
    end_ns = began_ns + round((curve[-1]["offset_s"] - age_s) * _NS_PER_S)
    return end_ns - round(steady_s * _NS_PER_S), end_ns


def _ip_version(result: Result) -> int:
    return int(result.variant.get("ip_version", "4"))


_TASKS: Final[dict[str, Callable[[Site, Run], tuple[Comparison, ...]]]] = {
    "round_trip": _round_trip,
    "capacity": _capacity,
}


def shown(comparison: Comparison) -> tuple[str, str, str]:
    """Configured, measured and error for people: Mbit/s and %, ms, or %."""
    scale, unit = {"bps": (1e-6, "Mbit/s"), "s": (1e3, "ms"), "ratio": (1e2, "%")}[comparison.unit]
    configured = f"{comparison.configured * scale:.3f} {unit}"
    if comparison.measured is None:
        return configured, "none", ""
    measured = f"{comparison.measured * scale:.3f} {unit}"
    if comparison.error_ratio is not None:
        return configured, measured, f"{comparison.error_ratio * 100:+.2f} %"
    if comparison.error_s is not None:
        return configured, measured, f"{comparison.error_s * 1e3:+.3f} ms"
    return configured, measured, ""


def outcome(result: Result) -> str:
    """How a run ended, in a few words."""
    if result.failure is not None:
        return f"failed: {result.failure.operation} {result.failure.kind}"
    if result.not_run is not None:
        return f"not run: {result.not_run.reason}"
    return "measured"


def as_builtins(comparison: Comparison) -> dict[str, Any]:
    """For programs."""
    fields: dict[str, Any] = msgspec.to_builtins(comparison)
    return fields | {"error_ratio": comparison.error_ratio, "error_s": comparison.error_s}
