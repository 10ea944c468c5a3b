"""Keep every result until the controller's receipt says that the database has it.

A row is written before the test runs: it holds the result that is true if the power fails now. `finish` replaces it
and gives it the next number of the current sequence space. Only a receipt, or a ceiling that is counted, deletes.
"""

from __future__ import annotations

import itertools
import logging
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from probe import config
from probe.clock import Clock, Instant
from probe.errors import SpoolError
from probe.messages import REPORT_BYTES_MAX, ClockState, Entry, Receipt, Result, SpoolStatus, encode
from probe.spool.ceilings import Ceilings
from probe.spool.clock import ClockCorrection
from probe.spool.file import SpoolFile, free_disk_bytes
from probe.spool.view import SpoolRow, SpoolView, read_rows, read_status

log = logging.getLogger(__name__)
T = TypeVar("T")

# A larger result fits no report beside the report's own fields.
RESULT_BYTES_MAX: Final = REPORT_BYTES_MAX - 2048
# What an entry costs in a report besides its result: {"sequence":…,"result":…},
ENTRY_BYTES: Final = 48
# Results set aside are for a person's eyes; more of them tell nothing new.
_SET_ASIDE_ROWS_MAX: Final = 200
_BOOT_DIGITS: Final = 12  # of 32: tells the boots of one device apart
_INTEGER_MAX: Final = 2**63 - 1  # SQLite's


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows to send: numbered results of one space, oldest first.

    `positions` is the inclusive range of the rows' places in the spool; it is what `Spool.batch` can leave out.
    """

    space: str
    floor: int
    entries: tuple[Entry, ...]
    positions: tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Stored:
    """One row of `results` as it is read to be sent."""

    position: int
    space: int
    sequence: int
    to_stamp: bool
    boot: str
    boottime_ns: int
    body: bytes


class Spool:
    """The durable outbox of one agent. Synchronous; safe to call from several threads.

    Args:
        path: the SQLite file.
        limits: the ceilings.
        clock: the clocks.
        boot_id: the kernel's id of this boot.
        free_disk: what may still be written on the disk of a path, in bytes.

    Raises:
        SpoolError: the file can neither be opened nor replaced by a new one.
    """

    def __init__(
        self,
        path: Path,
        limits: config.Spool,
        clock: Clock,
        boot_id: str,
        *,
        free_disk: Callable[[Path], int] = free_disk_bytes,
    ) -> None:
        self.recovered = 0
        self.lost_writes = 0
        self._boot = boot_id
        self._ceilings = Ceilings(limits, clock, boot_id, free_disk)
        self._correction = ClockCorrection(clock, boot_id)
        self._row_ids = itertools.count(1)
        self._begun: dict[int, Instant] = {}
        self._losses_saved = 0
        self._told_nonsense = False
        self._space_id = 0
        self._space = ""
        self._file = SpoolFile(path, lambda: self._ceilings.make_room(self._file), self._number_anew)
        self._number_anew()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def space(self) -> str:
        """The sequence space that new numbers come from."""
        return self._space

    @classmethod
    def inspect(cls, path: Path) -> SpoolView:
        """Open a spool for reading only, also while an agent uses it.

        Raises:
            SpoolError: there is none, or it cannot be read.
        """
        return SpoolView(path)

    def begin(self, draft: Result, started: Instant) -> int:
        """Store durably what is true if the power fails now; returns the row's id for `finish`.

        Raises:
            SpoolError: it could not be stored.
        """
        # Counted here, not by the file: a row keeps its id's meaning when the file has to be replaced.
        row = next(self._row_ids)

        def work() -> None:
            self._ceilings.keep_size(self._file)
            self._file.execute(
                "INSERT INTO running (id, boot, boottime_ns, body) VALUES (?, ?, ?, ?)",
                (row, self._boot, started.boottime_ns, encode(draft)),
            )

        self._write(work)
        self._begun[row] = started
        return row

    def finish(self, row: int, result: Result) -> int:
        """Replace what `begin` stored and number it; returns the sequence.

        Raises:
            SpoolError: `row` was not begun here, or the result could not be stored.
        """
        started = self._begun.pop(row, None)
        if started is None:
            raise SpoolError(f"row {row} was not begun, or is finished already")

        def work() -> int:
            # Without effect when the file was replaced meanwhile: then the result is the only trace.
            self._file.change("DELETE FROM running WHERE id = ?", (row,))
            return self._append(result, self._boot, started.boottime_ns)

        try:
            return self._write(work)
        except SpoolError:
            self._begun[row] = started
            raise

    def add(self, result: Result, started: Instant) -> int:
        """Store and number a result that had no running phase; returns the sequence.

        Raises:
            SpoolError: it could not be stored.
        """

        def work() -> int:
            self._ceilings.keep_size(self._file)
            return self._append(result, self._boot, started.boottime_ns)

        return self._write(work)

    def batch(self, skip: Sequence[tuple[int, int]], results_max: int, bytes_max: int) -> Batch | None:
        """The oldest rows to send: of one space, at most so many results and bytes as entries of a report.

        A row larger than `bytes_max` is passed over. Rows that wait for a clock get their final start time here,
        durably, so that sending them again sends the same.

        Args:
            skip: inclusive ranges of positions that are on their way already, in any order.
            results_max: at most so many entries.
            bytes_max: at most so many bytes of them.

        Raises:
            SpoolError: the spool cannot be read.
        """
        return self._file.run(lambda: self._batch(skip, results_max, bytes_max))

    def settle(self, receipt: Receipt) -> int:
        """Delete what the controller has taken and this process has sent; returns how many.

        Raises:
            SpoolError: the spool cannot be written.
        """
        return self._file.run(lambda: self._settle(receipt))

    def set_aside(self, space: str, sequences: Sequence[int], cause: str) -> int:
        """Take results out of the line that can never be delivered; returns how many.

        Raises:
            SpoolError: the spool cannot be written.
        """

        def work() -> int:
            known = self._file.execute("SELECT id FROM spaces WHERE name = ?", (space,))
            return sum(self._set_aside_row(row[0], sequence, cause) for row in known for sequence in sequences)

        return self._file.run(work)

    def enforce(self) -> None:
        """Keep the ceilings of age, bytes and free disk, and the file small. Call it now and then.

        Raises:
            SpoolError: the spool cannot be written.
        """

        def work() -> None:
            self._correction.remember_offset(self._file)
            self._ceilings.keep_age(self._file)
            self._ceilings.keep_size(self._file)
            self._forget_gone()
            self._save_losses()

        self._file.run(work)
        self._losses_saved = self.lost_writes
        self._file.give_back()
        self._file.keep_reserve()

    def status(self) -> SpoolStatus:
        """What waits, and what had to be dropped since the file was made.

        Raises:
            SpoolError: the spool cannot be read.
        """
        found = self._file.run(lambda: read_status(self._file.execute))
        unsaved = self.lost_writes - self._losses_saved
        return msgspec.structs.replace(found, lost_writes=found.lost_writes + unsaved)

    def rows(self, limit: int) -> tuple[SpoolRow, ...]:
        """The oldest `limit` rows of each kind.

        Raises:
            SpoolError: the spool cannot be read.
        """
        return self._file.run(lambda: read_rows(self._file.execute, limit))

    def _write(self, work: Callable[[], T]) -> T:
        try:
            return self._file.run(work)
        except SpoolError:
            self.lost_writes += 1
            raise

    def _number_anew(self) -> None:
        """Enter the current sequence space and number what an earlier process left open."""
        self._space = f"{self._boot[:_BOOT_DIGITS]}-{self._file.spool_id}"
        self.recovered += self._file.run(self._enter_space)

    def _enter_space(self) -> int:
        execute = self._file.execute
        execute(
            "DELETE FROM spaces WHERE name != ?"
            " AND id NOT IN (SELECT space FROM results UNION SELECT space FROM set_aside)",
            (self._space,),
        )
        execute("DELETE FROM boots WHERE boot != ? AND boot NOT IN (SELECT boot FROM results)", (self._boot,))
        execute("INSERT OR IGNORE INTO spaces (name, next_sequence) VALUES (?, 1)", (self._space,))
        self._space_id = execute("SELECT id FROM spaces WHERE name = ?", (self._space,))[0][0]
        left_open = execute("SELECT id, boot, boottime_ns, body FROM running ORDER BY id")
        for row, boot, boottime_ns, body in left_open:
            execute("DELETE FROM running WHERE id = ?", (row,))
            self._recover(body, boot, boottime_ns)
        return len(left_open)

    def _recover(self, body: bytes, boot: str, boottime_ns: int) -> None:
        try:
            result = msgspec.json.decode(body, type=Result)
        except msgspec.DecodeError as error:  # of a later version of this program, which was rolled back
            self._put_aside(self._space_id, self._next_sequence(), f"cannot be read: {error}", body)
        else:
            self._append(result, boot, boottime_ns)

    def _append(self, result: Result, boot: str, boottime_ns: int) -> int:
        """Number a result and put it at the end of the line, or aside when it fits no report."""
        self._correction.remember_offset(self._file)
        sequence = self._next_sequence()
        series = _series(result)
        start_unix_ns = self._unused_start(series, result.start_unix_ns)
        body = encode(msgspec.structs.replace(result, start_unix_ns=start_unix_ns))
        if len(body) > RESULT_BYTES_MAX:
            self._put_aside(self._space_id, sequence, f"{len(body)} bytes fit no report", body)
            return sequence
        unverified = result.clock.state is ClockState.UNSYNCHRONISED
        self._file.insert(
            "INSERT INTO results (space, sequence, boot, boottime_ns, verified_unix_ns, to_stamp, series,"
            " start_unix_ns, size, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(self._space_id, sequence, boot, boottime_ns, None if unverified else start_unix_ns, unverified),
                *(series, start_unix_ns, len(body), body),
            ),
        )
        return sequence

    def _next_sequence(self) -> int:
        update = "UPDATE spaces SET next_sequence = next_sequence + 1 WHERE id = ? RETURNING next_sequence - 1"
        return int(self._file.execute(update, (self._space_id,))[0][0])

    def _unused_start(self, series: int, start_unix_ns: int) -> int:
        """The next instant from `start_unix_ns` on that no result of the series has: it is a point's identity."""
        query = "SELECT 1 FROM results WHERE series = ? AND start_unix_ns = ?"
        while self._file.execute(query, (series, start_unix_ns)):
            start_unix_ns += 1
        return start_unix_ns

    # Reading to send

    def _batch(self, skip: Sequence[tuple[int, int]], results_max: int, bytes_max: int) -> Batch | None:
        taken = self._take(skip, results_max, bytes_max)
        waiting = [row for row in taken if row.to_stamp]
        if waiting:
            for row in waiting:
                try:
                    self._stamp(row)
                except msgspec.DecodeError as error:
                    self._set_aside_row(row.space, row.sequence, f"cannot be read: {error}")
            taken = self._take(skip, results_max, bytes_max)  # the new bodies, within the same bounds
        if not taken:
            return None
        for row in taken:
            self._file.execute("INSERT OR IGNORE INTO temp.sent VALUES (?)", (row.position,))
        space = self._file.execute("SELECT name FROM spaces WHERE id = ?", (taken[0].space,))[0][0]
        return Batch(
            space=space,
            floor=self._file.execute("SELECT min(sequence) FROM results WHERE space = ?", (taken[0].space,))[0][0],
            entries=tuple(Entry(sequence=row.sequence, result=msgspec.Raw(row.body)) for row in taken),
            positions=(taken[0].position, taken[-1].position),
        )

    def _take(self, skip: Sequence[tuple[int, int]], results_max: int, bytes_max: int) -> list[_Stored]:
        for low, high in _gaps(skip):
            found = self._file.execute(
                "SELECT position, space, sequence, to_stamp, boot, boottime_ns, body FROM results"
                " WHERE position BETWEEN ? AND ? AND size <= ? ORDER BY position LIMIT ?",
                (low, high, bytes_max - ENTRY_BYTES, results_max),
            )
            if found:
                return _first_of_one_space([_Stored(*row) for row in found], bytes_max)
        return []

    def _stamp(self, row: _Stored) -> None:
        """Give a result taken on an unverified clock its final start time."""
        result = msgspec.json.decode(row.body, type=Result)
        start_unix_ns, reading = self._correction.final_start(
            self._file, row.boot, row.boottime_ns, result.start_unix_ns
        )
        series = _series(result)
        if start_unix_ns != result.start_unix_ns:
            start_unix_ns = self._unused_start(series, start_unix_ns)
        body = encode(msgspec.structs.replace(result, start_unix_ns=start_unix_ns, clock=reading))
        verified = start_unix_ns if reading.state is ClockState.CORRECTED else None
        self._file.execute(
            "UPDATE results SET body = ?, size = ?, start_unix_ns = ?, to_stamp = 0,"
            " verified_unix_ns = coalesce(?, verified_unix_ns) WHERE position = ?",
            (body, len(body), start_unix_ns, verified, row.position),
        )

    # Deleting

    def _settle(self, receipt: Receipt) -> int:
        known = self._file.execute("SELECT id, next_sequence - 1 FROM spaces WHERE name = ?", (receipt.sequence_space,))
        if not known:
            return 0
        space, numbered = known[0]
        ranges = ((1, receipt.contiguous), *receipt.beyond)
        if any(high > numbered for _, high in ranges):
            if not self._told_nonsense:
                log.warning(
                    "Ignored a receipt for numbers above %d, which was the last one given: %s", numbered, receipt
                )
            self._told_nonsense = True
            return 0
        settled = sum(self._delete_sent(space, low, high) for low, high in ranges if high > 0 and low <= high)
        self._forget_gone()
        return settled

    def _delete_sent(self, space: int, low: int, high: int) -> int:
        return self._file.change(
            "DELETE FROM results WHERE space = ? AND sequence BETWEEN ? AND ?"
            " AND position IN (SELECT position FROM temp.sent)",
            (space, max(low, 1), high),
        )

    def _forget_gone(self) -> None:
        self._file.execute("DELETE FROM temp.sent WHERE position NOT IN (SELECT position FROM results)")

    def _set_aside_row(self, space: int, sequence: int, cause: str) -> int:
        found = self._file.execute(
            "DELETE FROM results WHERE space = ? AND sequence = ? RETURNING body", (space, sequence)
        )
        for (body,) in found:
            self._put_aside(space, sequence, cause, body)
        return len(found)

    def _put_aside(self, space: int, sequence: int, cause: str, body: bytes) -> None:
        log.warning("Set result %d aside: %s", sequence, cause)
        self._file.count("set_aside", 1)
        self._file.execute(
            "INSERT INTO set_aside (space, sequence, cause, body) VALUES (?, ?, ?, ?)", (space, sequence, cause, body)
        )
        self._file.execute(
            "DELETE FROM set_aside WHERE id <= (SELECT max(id) FROM set_aside) - ?", (_SET_ASIDE_ROWS_MAX,)
        )

    def _save_losses(self) -> None:
        if self.lost_writes > self._losses_saved:
            self._file.count("lost_writes", self.lost_writes - self._losses_saved)


def _series(result: Result) -> int:
    """What tells one series of points from another, as a small number. Two series with one number do no harm."""
    key = (result.task, result.link, result.peer, sorted(result.variant.items()))
    return zlib.crc32(msgspec.json.encode(key))


def _gaps(skip: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The inclusive ranges of positions between those to skip, lowest first; the last one is open."""
    low = 0
    for first, last in sorted(skip):
        if first > low:
            yield low, first - 1
        low = max(low, last + 1)
    yield low, _INTEGER_MAX


def _first_of_one_space(rows: Sequence[_Stored], bytes_max: int) -> list[_Stored]:
    """The rows that go into one report: of the first row's space, until the bytes are used up."""
    taken: list[_Stored] = []
    used = 0
    for row in rows:
        used += len(row.body) + ENTRY_BYTES
        if row.space != rows[0].space or used > bytes_max:
            break
        taken.append(row)
    return taken
