"""Small requests while a line is loaded, each on a connection of its own, as many as the line can afford."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from probe.errors import MeasurementFailedError, NotRunError
from probe.flows.http.channel import ByteCount, Tally
from probe.flows.load.foreign_probe import Target, probe_once
from probe.flows.load.responsiveness import WorkingConditions
from probe.messages import FailureKind, Operation

# A request that takes longer than this has met a dead line, not a deep buffer.
_TIME_OUT_S: Final = 5.0
# Requests that wait for their answer at once: on a line of 2 s no more than this hang on.
_WAITING_MAX: Final = 40
# On the slowest lines one request a second is left.
_GAP_S_MAX: Final = 1.0
# So many failures and not one answer: the peer has no small object, or is no peer.
_FAILED_MAX: Final = 5
# What a request costs until the first have shown it (TLS: a chain of certificates), what the headers of its packets
# add, and the share of the line that all may take (the draft's PTC).
_BYTES: Final = 600
_BYTES_OVER_TLS: Final = 6000
_HEADER_BYTES: Final = 400
_SHARE_MAX: Final = 0.05
_BITS: Final = 8


class Requests:
    """The requests of one loaded direction.

    Args:
        target: whom to ask for what.
        open_socket: a socket on the line.
        per_s: how many a second, where the line can afford them.
        usage: where the cost is kept.

    Attributes:
        answered: how many were answered so far.
        failed: how many were not.
        first_problem: what the first of these met.
    """

    def __init__(
        self, target: Target, open_socket: Callable[[], socket.socket], per_s: float, usage: ByteCount
    ) -> None:
        self.answered = self.failed = 0
        self.first_problem: MeasurementFailedError | None = None
        self._target = target
        self._open_socket = open_socket
        self._per_s = per_s
        self._usage = usage
        self._answered_bytes = 0
        self._waiting: set[asyncio.Task[None]] = set()

    @property
    def is_hopeless(self) -> bool:
        """Whether no request will ever be answered: loading the line any longer would be for nothing."""
        return self.failed >= _FAILED_MAX and not self.answered

    async def go_on(self, conditions: WorkingConditions) -> None:
        """Ask until cancelled; `conditions` is told of every answer, and tells what the line carries."""
        while True:
            if len(self._waiting) < _WAITING_MAX:
                task = asyncio.create_task(self._ask_once(conditions))
                self._waiting.add(task)
                task.add_done_callback(self._waiting.discard)
            await asyncio.sleep(self._gap_s(conditions.last_goodput_bps))

    def give_up(self) -> list[asyncio.Task[None]]:
        """Cancel those that still wait for their answer, and give their tasks, whose end is to be waited for."""
        waiting = list(self._waiting)
        for task in waiting:
            task.cancel()
        return waiting

    def _gap_s(self, goodput_bps: float) -> float:
        """Between two requests: as asked for, and no more than 5 % of what the line carries."""
        affordable_bps = _SHARE_MAX * goodput_bps
        affordable_s = self._one_bytes() * _BITS / affordable_bps if affordable_bps else 0.0
        return max(1 / self._per_s, min(affordable_s, _GAP_S_MAX))

    def _one_bytes(self) -> float:
        """What one has cost so far, in the mean."""
        if self.answered:
            return self._answered_bytes / self.answered + _HEADER_BYTES
        return (_BYTES if self._target.tls is None else _BYTES_OVER_TLS) + _HEADER_BYTES

    async def _ask_once(self, conditions: WorkingConditions) -> None:
        cost = Tally()
        try:
            conditions.add_foreign(await probe_once(self._target, self._open_socket, _TIME_OUT_S, cost))
            self.answered += 1
            self._answered_bytes += cost.sent_bytes + cost.received_bytes
        except MeasurementFailedError as error:
            self._note(error)
        except NotRunError as error:  # the link went away; the load says so too
            self._note(MeasurementFailedError(Operation.CONNECT, FailureKind.LINK_LOST, str(error)))
        finally:
            self._usage.sent_bytes += cost.sent_bytes
            self._usage.received_bytes += cost.received_bytes

    def _note(self, problem: MeasurementFailedError) -> None:
        self.failed += 1
        self.first_problem = self.first_problem or problem
