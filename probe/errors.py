"""What can go wrong, named.

Two of these are not faults of the program but data: `MeasurementFailedError` (the network said no) and
`NotRunError` (the measurement could not be made). Both end up in a `Result`.
"""

from __future__ import annotations

from probe.messages import Failure, FailureKind, NotRun, NotRunReason, Operation

# A detail is for a person's eyes: one line, not a page of a server's HTML.
DETAIL_CHARACTERS_MAX = 200


class ProbeError(Exception):
    """The base of every error that this package raises on purpose."""


class ConfigError(ProbeError):
    """A configuration that cannot be used.

    Args:
        place: where the mistake stands: a file, or a file and a key (`probe.toml: links[0].interface`).
        problem: what is wrong there.
        remedy: what to write instead.
    """

    def __init__(self, place: str, problem: str, remedy: str = "") -> None:
        super().__init__(f"{place}: {problem}" + (f" ({remedy})" if remedy else ""))
        self.place = place
        self.problem = problem
        self.remedy = remedy


class MeasurementFailedError(ProbeError):
    """The network said no while a measurement ran: an operation of it failed in a known way."""

    def __init__(self, operation: Operation, kind: FailureKind, detail: str = "") -> None:
        super().__init__(f"{operation}: {kind}: {detail}" if detail else f"{operation}: {kind}")
        self.failure = Failure(operation=operation, kind=kind, detail=one_line(detail))


class NotRunError(ProbeError):
    """The measurement could not be made at all, so it says nothing about the line."""

    def __init__(self, reason: NotRunReason, detail: str = "") -> None:
        super().__init__(f"not run: {reason}: {detail}" if detail else f"not run: {reason}")
        self.not_run = NotRun(reason=reason, detail=one_line(detail))


class SpoolError(ProbeError):
    """The spool could not be read or written: its disk is full, read-only or worn. Measuring goes on without it."""


def one_line(text: str) -> str:
    """Fold `text` to one bounded line of printable characters: it may come from the network and go to a terminal."""
    folded = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    if len(folded) <= DETAIL_CHARACTERS_MAX:
        return folded
    return folded[: DETAIL_CHARACTERS_MAX - 1] + "…"
