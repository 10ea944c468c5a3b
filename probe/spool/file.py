"""The spool's file: SQLite that survives power cuts, full disks and worn cards.

WAL with `synchronous=FULL`: a committed transaction is on the card. What cannot be read is set aside whole and a new
file begun, because a probe that nobody visits must go on. A small reserve file is given up when the disk is full, so
that there is room to delete something: in SQLite a deletion has to be written too.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from probe.errors import SpoolError
from probe.spool.tables import is_damaged, is_full, prepare

log = logging.getLogger(__name__)
T = TypeVar("T")

# Readers (`fleet-probe outbox`) hold no lock for long; a writer that waits longer than this is worth an error.
_BUSY_TIME_OUT_S: Final = 5.0
# Pages given back to the disk at once: bounds the time of one call and the wear of the card.
_VACUUM_PAGES: Final = 512
# Free pages below this share of the file are kept: they are filled again soon.
_FREE_SHARE_KEPT: Final = 4
# The log folded into a file that has to grow for it, and the deletion after that: what one relief may need.
_RESERVE_BYTES: Final = 2 * 1024 * 1024
_PAGES_MAX: Final = 2**32 - 2  # SQLite's own limit: none of ours
# Damaged files kept for a look: they may be as large as the spool.
_DAMAGED_KEPT: Final = 2


def free_disk_bytes(path: Path) -> int:
    """What an ordinary user may still write on the disk that `path` is on."""
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize


class SpoolFile:
    """One open spool file. Every use is a transaction under one lock.

    Args:
        path: the database; its folder is made.
        make_room: called inside a transaction when the disk is full; deletes what may go.
        replaced: called after a damaged file was replaced by a new one.

    Raises:
        SpoolError: the file can neither be opened nor replaced.
    """

    def __init__(self, path: Path, make_room: Callable[[], None], replaced: Callable[[], None]) -> None:
        self.path = path
        self.spool_id = ""
        self._reserve = path.with_name(path.name + ".reserve")
        self._make_room = make_room
        self._replaced = replaced
        self._lock = threading.RLock()
        self._connection = self._open_or_replace()
        self._is_lost = False
        self.keep_reserve()

    def close(self) -> None:
        """Fold the log into the file and close it."""
        with self._lock:
            self._connection.close()

    def execute(self, statement: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Run one statement and give all its rows."""
        return self._connection.execute(statement, parameters).fetchall()

    def change(self, statement: str, parameters: tuple[Any, ...] = ()) -> int:
        """Run one statement and give the number of rows it changed."""
        return self._connection.execute(statement, parameters).rowcount

    def insert(self, statement: str, parameters: tuple[Any, ...]) -> int:
        """Insert one row and give its id."""
        return int(self._connection.execute(statement, parameters).lastrowid or 0)

    def run(self, work: Callable[[], T]) -> T:
        """Run `work` in one transaction; make room and try again when the disk is full.

        Raises:
            SpoolError: it could not be done; nothing of it was.
        """
        with self._lock, self._errors_of_ours():
            if self._is_lost:
                self._begin_anew()
            for remedy in (self._relieve, self._drop):
                try:
                    return self._attempt(work)
                except sqlite3.Error as error:
                    self._recover(error, remedy)
            return self._attempt(work)

    def count(self, name: str, number: int) -> None:
        """Add to a counter that outlives the process."""
        self.execute(
            "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = value + excluded.value",
            (name, number),
        )

    def used_bytes(self) -> int:
        """The file's size without its free pages."""
        pages, free = self._pages()
        return (pages - free) * self._page_bytes()

    def file_bytes(self) -> int:
        """The file's size with its free pages, once the log is folded into it."""
        return self._pages()[0] * self._page_bytes()

    def give_back(self) -> None:
        """Return free pages to the disk when they are many, a bounded number at a time.

        Raises:
            SpoolError: the file is damaged.
        """
        with self._lock, self._errors_of_ours():
            pages, free = self._pages()
            if free > _VACUUM_PAGES and free * _FREE_SHARE_KEPT > pages:
                self._vacuum()

    def keep_reserve(self) -> None:
        """Make the reserve file where it is missing and the disk has room; then the spool may grow again.

        Raises:
            SpoolError: the disk or the file is damaged.
        """
        with self._lock, self._errors_of_ours():
            if self._reserve.exists():
                return
            try:
                with self._reserve.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, _RESERVE_BYTES)
            except OSError:
                self._reserve.unlink(missing_ok=True)
                return
            self.execute(f"PRAGMA max_page_count = {_PAGES_MAX}")

    def _vacuum(self) -> None:
        # The pragma frees one page a step, and only a script is stepped to its end where no rows come back.
        self._connection.executescript(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})")

    def _page_bytes(self) -> int:
        return int(self.execute("PRAGMA page_size")[0][0])

    def _pages(self) -> tuple[int, int]:
        return int(self.execute("PRAGMA page_count")[0][0]), int(self.execute("PRAGMA freelist_count")[0][0])

    def _attempt(self, work: Callable[[], T]) -> T:
        with self._transaction():
            return work()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            # Some errors (a full disk among them) have rolled back already.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _errors_of_ours(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise SpoolError(f"{self.path}: {error}") from error

    def _recover(self, error: sqlite3.Error, remedy: Callable[[], None]) -> None:
        """Do what may let another attempt succeed.

        Raises:
            SpoolError: nothing can.
        """
        if is_damaged(error):
            self._replace(str(error))
        elif is_full(error):
            remedy()
        else:
            raise SpoolError(f"{self.path}: {error}") from error

    def _relieve(self) -> None:
        """Live within what the file and its log have, from now until there is room for the reserve again.

        The reserve lets the log be folded into the file once more. After that the file may not grow: then it needs no
        byte of the disk, because the log is written from its beginning again.
        """
        self._reserve.unlink(missing_ok=True)
        self._fold()
        self.execute(f"PRAGMA max_page_count = {self._pages()[0]}")

    def _drop(self) -> None:
        try:
            self._attempt(self._make_room)
        except sqlite3.Error as error:
            raise SpoolError(f"{self.path}: {error}; there is no room even to delete") from error
        self._fold()

    def _fold(self) -> None:
        try:
            self.execute("PRAGMA wal_checkpoint(RESTART)")
        except sqlite3.Error as error:
            log.debug("The log of %s could not be folded into it: %s", self.path, error)

    def _open_or_replace(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                return self._open()
            except sqlite3.DatabaseError as error:
                if is_damaged(error):
                    self._set_aside(str(error))
                self._reserve.unlink(missing_ok=True)  # if the disk is full, this is room to start in
                return self._open()
        except (sqlite3.Error, OSError) as error:
            raise SpoolError(f"{self.path} cannot be opened: {error}") from error

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path,
            timeout=_BUSY_TIME_OUT_S,
            isolation_level=None,  # transactions are written out in `_transaction`
            check_same_thread=False,  # `_lock` does
        )
        try:
            self.spool_id = prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _replace(self, problem: str) -> None:
        self._connection.close()
        self._is_lost = True
        self._set_aside(problem)
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Open whatever there is now. Until it succeeds, also with what is to be told of it, each use tries again."""
        self._connection = self._open_or_replace()
        self._is_lost = False
        try:
            self._replaced()
        except BaseException:
            self._connection.close()
            self._is_lost = True
            raise

    def _set_aside(self, problem: str) -> None:
        target = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns()}")
        log.error("Set the damaged spool aside as %s and began a new one: %s", target, problem)
        self.path.rename(target)
        for suffix in ("-wal", "-shm"):
            side = self.path.with_name(self.path.name + suffix)
            if side.exists():
                side.rename(target.with_name(target.name + suffix))
        _forget_oldest(self.path)


def _forget_oldest(path: Path) -> None:
    damaged = sorted(path.parent.glob(f"{path.name}.damaged-*[0-9]"))
    for old in damaged[:-_DAMAGED_KEPT]:
        for suffix in ("", "-wal", "-shm"):
            old.with_name(old.name + suffix).unlink(missing_ok=True)
