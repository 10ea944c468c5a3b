"""What can go wrong in the controller, named."""

from __future__ import annotations


class ControllerError(Exception):
    """The base of every error that this package raises on purpose."""


class ServiceError(ControllerError):
    """A server program of the demo is missing or did not start."""


class ConfigError(ControllerError):
    """A configuration that cannot be used: where (file and line), what is wrong, what to write instead."""

    def __init__(self, place: str, problem: str, remedy: str = "") -> None:
        super().__init__(f"{place}: {problem}" + (f" ({remedy})" if remedy else ""))
        self.place = place
        self.problem = problem
        self.remedy = remedy


class InvalidReportError(ControllerError):
    """A message, or one result of it, that cannot be accepted. `reason` is a word of a closed list."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class BrokerError(ControllerError):
    """The broker cannot be reached, or refused what was asked of it."""


class StoreError(ControllerError):
    """The database did not take the points."""


class StoreUnavailableError(StoreError):
    """It may take them later: no answer, 429 or 5xx. Try the same bytes again."""


class StoreRefusedError(StoreError):
    """It will not take them until a person changes something: 401, 403 or 404. Nothing may be dropped."""


class PartialWriteError(StoreError):
    """It took the batch in part or not at all, because of some points in it: 400, 413 or 422."""


class QuarantineError(ControllerError):
    """The quarantine on disk cannot be read or written. Nothing may be acknowledged that was to be kept there."""
