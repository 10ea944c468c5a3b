"""Patience: one step is tried until it is done, however long the database or the disk takes to come back."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from fleet_controller.errors import StoreRefusedError

_LOG = logging.getLogger(__name__)
T = TypeVar("T")
# Doubling with full jitter: back within half a minute of the database, and no storm on one that just started.
_FIRST_WAIT_S: Final = 0.2
_LONGEST_WAIT_S: Final = 30.0
# A person must act first, and a refused log-in that is tried too often gets a user locked out.
_FIRST_REFUSED_WAIT_S: Final = 2.0
_LONGEST_REFUSED_WAIT_S: Final = 60.0


class Patience:
    """Tries a step again and again, and logs only when things change.

    Attributes:
        trouble: why the present step cannot be done; absent while all is well.
        attempts_failed: how many tries came to nothing since the start.
    """

    def __init__(self, stopping: threading.Event, jitter: Callable[[], float] = random.random) -> None:
        self.trouble: str | None = None
        self.attempts_failed = 0
        self._stopping = stopping
        self._jitter = jitter
        self._kind: type[Exception] | None = None

    def until_done(self, step: Callable[[], T]) -> T | None:
        """Try until it works; absent when the controller is told to stop before that."""
        attempt = 0
        while not self._stopping.is_set():
            try:
                done = step()
            except Exception as error:  # noqa: BLE001 - whatever it is, what waits must not be dropped
                self._note_trouble(error)
                self._stopping.wait(self._wait_s(attempt, error))
                attempt += 1
            else:
                self._note_recovery()
                return done
        return None

    def _wait_s(self, attempt: int, error: Exception) -> float:
        refused = isinstance(error, StoreRefusedError)
        first = _FIRST_REFUSED_WAIT_S if refused else _FIRST_WAIT_S
        longest = _LONGEST_REFUSED_WAIT_S if refused else _LONGEST_WAIT_S
        # Never less than half: a jitter of zero would be a busy loop.
        return min(longest, first * 2.0 ** min(attempt, 20)) * (0.5 + 0.5 * self._jitter())

    def _note_trouble(self, error: Exception) -> None:
        self.attempts_failed += 1
        self.trouble = str(error) or repr(error)
        if type(error) is self._kind:
            return
        self._kind = type(error)
        if isinstance(error, StoreRefusedError):
            _LOG.error("database refused the controller, nothing is dropped, somebody must act: %s", error)
        else:
            _LOG.warning("storing was interrupted, nothing is dropped: %s", self.trouble, exc_info=_fault(error))

    def _note_recovery(self) -> None:
        if self._kind is not None:
            _LOG.info("storing was resumed")
        self.trouble, self._kind = None, None


def _fault(error: Exception) -> Exception | None:
    """An error that nobody foresaw is logged with its place."""
    return None if type(error).__module__.startswith("fleet_controller") else error
