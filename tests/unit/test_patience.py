from __future__ import annotations

import logging
import threading

import pytest

from fleet_controller.errors import StoreRefusedError, StoreUnavailableError
from fleet_controller.patience import Patience


class Waits(threading.Event):
    """An event whose waits take no time and are noted."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self._stop_after = stop_after

    def wait(self, timeout: float | None = None) -> bool:
        """Note the wait; set itself after so many."""
        assert timeout is not None
        self.seconds.append(timeout)
        if len(self.seconds) == self._stop_after:
            self.set()
        return self.is_set()


def failing(times: int, error: Exception) -> list[object]:
    """So many failures."""
    return [error] * times


def run(waits: Waits, outcomes: list[object]) -> tuple[object, Patience]:
    """Try a step with these outcomes, then success."""
    patience = Patience(waits, jitter=lambda: 1.0)

    def step() -> object:
        outcome = outcomes.pop(0) if outcomes else "done"
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return patience.until_done(step), patience


def test_waits_double_up_to_a_bound() -> None:
    """An unavailable database is asked again after 0.2 s, doubling to half a minute, for as long as it takes."""
    waits = Waits()
    done, patience = run(waits, failing(12, StoreUnavailableError("no answer")))
    assert done == "done"
    assert waits.seconds == pytest.approx([0.2 * 2**n for n in range(8)] + [30.0] * 4)
    assert patience.attempts_failed == 12
    assert patience.trouble is None


def test_a_refusal_is_asked_again_slowly() -> None:
    """A refused log-in is tried seldom from the start: it takes a person anyhow."""
    waits = Waits()
    run(waits, failing(8, StoreRefusedError("401")))
    assert waits.seconds == [2, 4, 8, 16, 32, 60, 60, 60]


def test_an_outage_of_years_overflows_nothing() -> None:
    """The wait stays bounded however often it failed."""
    waits = Waits()
    run(waits, failing(3000, StoreUnavailableError("no answer")))
    assert max(waits.seconds) == 30


def test_stopping_ends_the_wait_and_keeps_nothing() -> None:
    """Told to stop, it gives nothing back, so that nothing is acknowledged."""
    done, patience = run(Waits(stop_after=3), failing(100, StoreUnavailableError("no answer")))
    assert done is None
    assert patience.trouble == "no answer"


def test_only_transitions_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """One line when it begins, one when its kind changes, one when it is over."""
    caplog.set_level(logging.INFO)
    run(Waits(), [*failing(5, StoreUnavailableError("away")), *failing(5, StoreRefusedError("401"))])
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR", "INFO"]
    assert "somebody must act: 401" in caplog.text


def test_an_unforeseen_error_is_waited_out_too(caplog: pytest.LogCaptureFixture) -> None:
    """A fault of our own drops nothing, and is logged with its place."""
    done, _ = run(Waits(), failing(1, ZeroDivisionError()))
    assert done == "done"
    assert "ZeroDivisionError" in caplog.text
    assert "Traceback" in caplog.text
