"""One figure of a run: what the line was made to be beside what was measured, for people and for programs."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from probe.messages import Result

Unit = Literal["bps", "s", "ratio", "bytes", "count", "per_minute"]
Relation = Literal["is", "at_least", "at_most"]
# Of each unit: what to multiply by for people, and what to call it then.
_SHOWN: Final[dict[Unit, tuple[float, str, int]]] = {
    "bps": (1e-6, "Mbit/s", 3),
    "s": (1e3, "ms", 3),
    "ratio": (1e2, "%", 3),
    "bytes": (1, "bytes", 0),
    "count": (1, "", 0),
    "per_minute": (1, "per min", 0),
}
# By how much a delay may miss a bound: what the lab's own timing and the kernel's stamps may be off (`lab check`).
_SLACK_S: Final = 0.0003
_MARKS: Final[dict[Relation, str]] = {"is": "", "at_least": "≥ ", "at_most": "≤ "}


class Comparison(msgspec.Struct, frozen=True):
    """One figure: what a perfect instrument would have said, what ours said, and by how much it is off.

    `error_ratio` is for rates (measured / configured - 1), `error_s` for delays (measured - configured). Where the line
    sets a bound and no value, `relation` says so, and `holds` whether it was kept. `spread` is how far a single
    measurement on a line with jitter may lie on either side of what is configured, in the same unit.
    """

    what: str
    unit: Unit
    configured: float
    measured: float | None
    relation: Relation = "is"
    spread: float = 0.0

    @property
    def error_ratio(self) -> float | None:
        """Relative error of a rate."""
        if self.measured is None or self.unit != "bps" or self.relation != "is":
            return None
        return self.measured / self.configured - 1

    @property
    def error_s(self) -> float | None:
        """Error of a delay."""
        if self.measured is None or self.unit != "s" or self.relation != "is":
            return None
        return self.measured - self.configured

    @property
    def holds(self) -> bool | None:
        """Whether a bound was kept, or a count was right; absent for what is measured with an error."""
        if self.measured is None or (self.relation == "is" and self.unit not in {"bytes", "count"}):
            return None
        slack = _SLACK_S if self.unit == "s" else 0.0
        if self.relation == "at_least":
            return self.measured >= self.configured - slack
        if self.relation == "at_most":
            return self.measured <= self.configured + slack
        return self.measured == self.configured


class Word(msgspec.Struct, frozen=True):
    """One word: what the line makes of it, and what was said; absent where nothing was."""

    what: str
    configured: str
    measured: str | None
    unit: Literal["word"] = "word"

    @property
    def holds(self) -> bool:
        """Whether it is the same."""
        return self.measured == self.configured


Compared = Comparison | Word


def shown(one: Compared) -> tuple[str, str, str]:
    """Configured, measured and error for people: Mbit/s and %, ms, or whether it is so."""
    if isinstance(one, Word):
        return one.configured, one.measured or "none", _verdict(holds=one.holds)
    scale, unit, digits = _SHOWN[one.unit]
    spread = f" ±{one.spread * scale:.{digits}f}" if one.spread else ""
    configured = f"{_MARKS[one.relation]}{one.configured * scale:.{digits}f}{spread} {unit}".rstrip()
    if one.measured is None:
        return configured, "none", ""
    measured = f"{one.measured * scale:.{digits}f} {unit}".rstrip()
    if one.error_ratio is not None:
        return configured, measured, f"{one.error_ratio * 100:+.2f} %"
    if one.error_s is not None:
        return configured, measured, f"{one.error_s * 1e3:+.3f} ms"
    if one.unit == "ratio":
        return configured, measured, f"{(one.measured - one.configured) * 100:+.3f} points"
    return configured, measured, "" if one.holds is None else _verdict(holds=one.holds)


def _verdict(*, holds: bool) -> str:
    return "holds" if holds else "DOES NOT HOLD"


def as_builtins(one: Compared) -> dict[str, Any]:
    """For programs."""
    fields: dict[str, Any] = msgspec.to_builtins(one)
    if isinstance(one, Word):
        return fields | {"holds": one.holds}
    return fields | {"error_ratio": one.error_ratio, "error_s": one.error_s, "holds": one.holds}


def outcome(result: Result) -> str:
    """How a run ended, in a few words."""
    if result.failure is not None:
        return f"failed: {result.failure.operation} {result.failure.kind}"
    if result.not_run is not None:
        return f"not run: {result.not_run.reason}"
    return "measured"
