"""What is on its way to the controller, and what may go next: the flow control of the publisher, without any input.

A report is in flight until the broker's PUBACK, and outstanding until the controller's receipt. PUBACK only paces
sending; what no receipt names goes again, first after 30 s and then ever more seldom, so that a day without a database
costs the line and the broker little.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from probe.messages import Entry, Receipt

# A connection that ends three times in a row on the same report ends because of it (or of its size).
_STRIKES: Final = 3
# Without the broker's word, a bad line looks the same; only after as many is one result taken for the cause.
_STRIKES_WITHOUT_WORD: Final = 9
# A sent report's patience is spread over half of itself, so that reports (and probes) do not go again in step.
_PATIENCE_SPREAD: Final = 1.5


class Outgoing(Protocol):
    """Rows of the outbox to send in one report."""

    @property
    def space(self) -> str:
        """Their sequence space."""

    @property
    def floor(self) -> int:
        """The lowest number of that space which the outbox still has."""

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The numbered results."""

    @property
    def positions(self) -> tuple[int, int]:
        """The inclusive range of their places in the outbox."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The times and bounds of publishing.

    Attributes:
        window_results: outstanding results at most; the broker's queue must hold them for each probe.
        report_results: results in one report at most; 20 already give three times the throughput of one.
        resend_first_s: without a receipt a report goes again after this; the controller's answer takes about one.
        resend_max_s: the pause doubles up to this.
        refused_first_s: the first pause when the broker does not accept reports (nobody subscribed, no right).
        refused_max_s: the pause doubles up to this.
        regrow_s: reports that had to become smaller may double again after this.
        reconnect_first_s: the bound of the first random pause before connecting again.
        reconnect_max_s: the bound doubles up to this: a fleet of thousands comes back within two minutes.
        stable_s: a connection that lived as long starts the doubling anew.
        connect_s: an attempt without an answer is given up after this.
        stop_s: how long the goodbye may take.
        will_delay_s: the broker waits as long before it calls the probe lost: a mobile line flaps.
    """

    window_results: int = 4000
    report_results: int = 500
    resend_first_s: float = 30.0
    resend_max_s: float = 900.0
    refused_first_s: float = 5.0
    refused_max_s: float = 300.0
    regrow_s: float = 600.0
    reconnect_first_s: float = 2.0
    reconnect_max_s: float = 120.0
    stable_s: float = 30.0
    connect_s: float = 60.0
    stop_s: float = 5.0
    will_delay_s: int = 75


@dataclass(slots=True, eq=False)
class _Sent:
    space: str
    positions: tuple[int, int]
    pending: set[int]
    size: int
    patience: float
    sent_at_s: float = 0.0
    pause_s: float = 0.0

    def due_s(self) -> float:
        return self.sent_at_s + self.pause_s * self.patience


@dataclass(frozen=True, slots=True)
class Guilty:
    """A result that the broker hangs up on."""

    space: str
    sequence: int
    cause: str


class Window:
    """The reports on their way.

    Args:
        pace: times and bounds.
        now_s: the monotonic clock.
        spread: the source of jitter.
    """

    def __init__(self, pace: Pace, now_s: Callable[[], float], spread: random.Random) -> None:
        self._pace = pace
        self._now_s = now_s
        self._spread = spread
        self._in_flight: dict[int, _Sent] = {}
        self._accepted: list[_Sent] = []
        self._pause_s = pace.resend_first_s
        self._report_results = pace.report_results
        self._shrunk_at_s = 0.0
        self._refusals = 0
        self._silent_until_s = 0.0
        self._strikes = 0
        self._strikes_by_word = 0
        self._careful = False
        self._asked_until_s = 0.0

    @property
    def outstanding(self) -> int:
        """How many results no receipt has named yet."""
        return sum(len(sent.pending) for sent in self._all())

    @property
    def in_flight(self) -> int:
        """How many reports the broker has not answered yet."""
        return len(self._in_flight)

    def skip(self) -> list[tuple[int, int]]:
        """The ranges of positions that are on their way."""
        return [sent.positions for sent in self._all()]

    def room(self, slots: int) -> int:
        """How many results the next report may have; 0 is to wait. `slots`: messages that the client may hold."""
        slots = min(slots, 1) if self._careful else slots
        if len(self._in_flight) >= slots or self._now_s() < self._silent_until_s:
            return 0
        self._regrow()
        return max(0, min(self._report_results, self._pace.window_results - self.outstanding))

    def handed_over(self, message_id: int, batch: Outgoing) -> None:
        """A report went to the client under this id."""
        self._in_flight[message_id] = _Sent(
            space=batch.space,
            positions=batch.positions,
            pending={entry.sequence for entry in batch.entries},
            size=len(batch.entries),
            patience=self._spread.uniform(1.0, _PATIENCE_SPREAD),
        )

    def acknowledged(self, message_id: int, *, accepted: bool) -> bool:
        """The broker answered; says whether that id was a report's."""
        sent = self._in_flight.pop(message_id, None)
        if sent is None:
            return False
        if accepted:
            self._note_accepted(sent)
        else:
            self._careful = True  # one report is enough to ask again
            pause_s = min(self._pace.refused_max_s, self._pace.refused_first_s * 2.0**self._refusals)
            self._silent_until_s = self._now_s() + pause_s * self._spread.uniform(0.5, 1.0)
            self._refusals = min(self._refusals + 1, 30)  # far beyond the maximum, before the power overflows
        return True

    def settled(self, receipt: Receipt, deleted: int) -> None:
        """A receipt came and the outbox deleted so many results for it."""
        named = _naming(receipt)
        for sent in self._all():
            if sent.space == receipt.sequence_space:
                sent.pending = {sequence for sequence in sent.pending if not named(sequence)}
        self._accepted = [sent for sent in self._accepted if sent.pending]
        if deleted and self._pause_s > self._pace.resend_first_s:
            # The controller is back. What it has not named yet it may be about to: give that its time.
            self._pause_s = self._pace.resend_first_s
            for sent in self._accepted:
                sent.sent_at_s, sent.pause_s = self._now_s(), self._pause_s

    def expire(self) -> bool:
        """Let go again what no receipt has named for too long; says whether there was any.

        Each goes again once: it may simply have been lost. While nobody answers that either, only the oldest goes at
        each round: one is enough to find out when somebody does, and the whole window at every round would be many
        times what a day of measurements is. A receipt starts it anew (see `settled`).
        """
        now_s = self._now_s()
        late = [sent for sent in self._accepted if sent.due_s() <= now_s]
        going = [sent for sent in late if sent.pause_s <= self._pace.resend_first_s]
        if not going and now_s >= self._asked_until_s:
            going = late[:1]
            self._asked_until_s = now_s + self._pause_s
        if going:
            # By the report's own pause: the reports of one round must not double it once each.
            self._pause_s = min(self._pace.resend_max_s, max(sent.pause_s for sent in going) * 2.0)
        self._accepted = [sent for sent in self._accepted if sent not in going]
        for sent in late:
            if sent not in going:
                sent.sent_at_s, sent.pause_s = now_s, self._pause_s
        return bool(going)

    def session_forgotten(self) -> None:
        """The broker knows nothing of us any more: what it had queued is lost too, so all goes again."""
        self._accepted.clear()

    def connection_ended(self, *, by_word: bool) -> Guilty | None:
        """The connection is gone. Returns the one result to set aside when it is plainly the cause."""
        first = next(iter(self._in_flight.values()), None)
        self._in_flight.clear()
        if first is None:
            return None
        self._careful = True  # with one report at a time it is plain which one it is
        self._strikes += 1
        self._strikes_by_word += by_word
        if first.size > 1:
            self._shrink(first.size)
            return None
        return self._judge(first)

    def next_due_s(self) -> float | None:
        """The next instant of the monotonic clock at which something may go that may not go now."""
        now_s = self._now_s()
        times = [sent.due_s() for sent in self._accepted]
        if self._silent_until_s > now_s:
            times.append(self._silent_until_s)
        return min(times, default=None)

    def _all(self) -> Iterable[_Sent]:
        yield from self._in_flight.values()
        yield from self._accepted

    def _note_accepted(self, sent: _Sent) -> None:
        self._refusals = self._strikes = self._strikes_by_word = 0
        self._silent_until_s = 0.0
        self._careful = False
        if sent.pending:  # a receipt can be faster than the broker's PUBACK
            sent.sent_at_s, sent.pause_s = self._now_s(), self._pause_s
            self._accepted.append(sent)

    def _shrink(self, size: int) -> None:
        if self._strikes >= _STRIKES:
            self._strikes = self._strikes_by_word = 0
            self._report_results = max(1, size // 2)
            self._shrunk_at_s = self._now_s()

    def _regrow(self) -> None:
        now_s = self._now_s()
        if self._report_results < self._pace.report_results and now_s - self._shrunk_at_s >= self._pace.regrow_s:
            self._report_results = min(self._pace.report_results, self._report_results * 2)
            self._shrunk_at_s = now_s

    def _judge(self, sent: _Sent) -> Guilty | None:
        if self._strikes_by_word < _STRIKES and self._strikes < _STRIKES_WITHOUT_WORD:
            return None
        cause = f"the connection ended {self._strikes} times in a row on it"
        self._strikes = self._strikes_by_word = 0
        return Guilty(sent.space, next(iter(sent.pending)), cause) if sent.pending else None


def _naming(receipt: Receipt) -> Callable[[int], bool]:
    """Whether a sequence is one that the receipt names."""
    ranges = sorted((low, high) for low, high in receipt.beyond if low <= high)
    lows = [low for low, _ in ranges]

    def named(sequence: int) -> bool:
        index = bisect.bisect_right(lows, sequence) - 1
        return sequence <= receipt.contiguous or (index >= 0 and sequence <= ranges[index][1])

    return named
