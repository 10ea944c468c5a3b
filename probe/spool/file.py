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
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from probe.errors import SpoolError

log = logging.getLogger(__name__)
T = TypeVar("T")

# Marks the file as ours (SQLite `application_id`); the version grows with the schema.
_APPLICATION_ID: Final = 0x50464C54
_SCHEMA_VERSION: Final = 1
# Readers (`fleet-probe outbox`) hold no lock for long; a writer that waits longer than this is worth an error.
_BUSY_TIME_OUT_S: Final = 5.0
# Of 4 KiB each: the log is folded into the file at 1 MiB and cut back to that, so it stays bounded.
_CHECKPOINT_PAGES: Final = 256
_JOURNAL_BYTES_MAX: Final = 1024 * 1024
# Pages given back to the disk at once: bounds the time of one call and the wear of the card.
_VACUUM_PAGES: Final = 512
# Free pages below this share of the file are kept: they are filled again soon.
_FREE_SHARE_KEPT: Final = 4
# The log folded into a file that has to grow for it, and the deletion after that: what one relief may need.
_RESERVE_BYTES: Final = 2 * 1024 * 1024
_PAGES_MAX: Final = 2**32 - 2  # SQLite's own limit: none of ours
# Damaged files kept for a look: they may be as large as the spool.
_DAMAGED_KEPT: Final = 2

_SCHEMA: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE boots (boot TEXT PRIMARY KEY, offset_ns INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE spaces (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, next_sequence INTEGER NOT NULL);
CREATE TABLE running (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    boot TEXT NOT NULL,
    boottime_ns INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE TABLE results (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    space INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    boot TEXT NOT NULL,
    boottime_ns INTEGER NOT NULL,
    verified_unix_ns INTEGER,
    to_stamp INTEGER NOT NULL,
    series INTEGER NOT NULL,
    start_unix_ns INTEGER NOT NULL,
    size INTEGER NOT NULL,
    body BLOB NOT NULL,
    UNIQUE (space, sequence)
);
CREATE INDEX results_by_start ON results (series, start_unix_ns);
CREATE TABLE set_aside (
    id INTEGER PRIMARY KEY,
    space INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    cause TEXT NOT NULL,
    body BLOB NOT NULL
);
"""


def primary_code(error: sqlite3.Error) -> int:
    """SQLite's primary result code of an error; 0 when Python itself raised it."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def is_damaged(error: sqlite3.Error) -> bool:
    """Whether the error says that the file is not a sound database."""
    return primary_code(error) in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def is_full(error: sqlite3.Error) -> bool:
    """Whether the error says that the disk is full; SQLite has another code for it where it maps its index."""
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_SHMSIZE


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
        with self._lock:
            for remedy in (self._relieve, self._drop):
                try:
                    return self._attempt(work)
                except sqlite3.Error as error:
                    self._recover(error, remedy)
            try:
                return self._attempt(work)
            except sqlite3.Error as error:
                raise SpoolError(f"{self.path}: {error}") from error

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
        """Return free pages to the disk when they are many, a bounded number at a time."""
        with self._lock:
            pages, free = self._pages()
            if free > _VACUUM_PAGES and free * _FREE_SHARE_KEPT > pages:
                self._vacuum()

    def keep_reserve(self) -> None:
        """Make the reserve file where it is missing and the disk has room; then the spool may grow again."""
        with self._lock:
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
            self.spool_id = _prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _replace(self, problem: str) -> None:
        self._connection.close()
        try:
            self._set_aside(problem)
        except OSError as error:
            raise SpoolError(f"{self.path} is damaged and cannot be set aside: {error}") from error
        self._connection = self._open_or_replace()
        self._replaced()

    def _set_aside(self, problem: str) -> None:
        target = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns()}")
        log.error("Set the damaged spool aside as %s and began a new one: %s", target, problem)
        self.path.rename(target)
        for suffix in ("-wal", "-shm"):
            side = self.path.with_name(self.path.name + suffix)
            if side.exists():
                side.rename(target.with_name(target.name + suffix))
        _forget_oldest(self.path)


def _prepare(connection: sqlite3.Connection) -> str:
    """Check or make the tables; returns the spool's id.

    Raises:
        sqlite3.DatabaseError: with SQLite's code for "not a database" when the file is damaged or not ours.
    """
    # Takes effect only before the first table is made.
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL").fetchall()
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
    connection.execute(f"PRAGMA journal_size_limit = {_JOURNAL_BYTES_MAX}")
    connection.execute("PRAGMA temp_store = MEMORY")
    is_new = not connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
    if is_new:
        _create(connection)
    _check(connection)
    # What this process has handed out for sending. It goes with the process, on purpose.
    connection.execute("CREATE TEMP TABLE sent (position INTEGER PRIMARY KEY)")
    rows = connection.execute("SELECT value FROM meta WHERE key = 'spool_id'").fetchall()
    if not rows:
        raise _damaged("it has no spool id")
    return str(rows[0][0])


def _create(connection: sqlite3.Connection) -> None:
    # 8 hexadecimal digits tell the files of one device and boot apart; boots are told apart by their own id.
    spool_id = uuid.uuid4().hex[:8]
    connection.executescript(
        f"BEGIN IMMEDIATE;PRAGMA application_id = {_APPLICATION_ID};PRAGMA user_version = {_SCHEMA_VERSION};{_SCHEMA}"
    )
    connection.execute("INSERT INTO meta VALUES ('spool_id', ?)", (spool_id,))
    connection.execute("COMMIT")


def _check(connection: sqlite3.Connection) -> None:
    application, version = (
        int(connection.execute(f"PRAGMA {name}").fetchall()[0][0]) for name in ("application_id", "user_version")
    )
    if (application, version) != (_APPLICATION_ID, _SCHEMA_VERSION):
        raise _damaged(f"it is not a spool of version {_SCHEMA_VERSION} (application {application:#x}, {version})")
    verdict = connection.execute("PRAGMA quick_check(1)").fetchall()
    if verdict != [("ok",)]:
        raise _damaged(str(verdict[:1]))


def _damaged(problem: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(problem)
    error.sqlite_errorcode = sqlite3.SQLITE_NOTADB
    return error


def _forget_oldest(path: Path) -> None:
    damaged = sorted(path.parent.glob(f"{path.name}.damaged-*[0-9]"))
    for old in damaged[:-_DAMAGED_KEPT]:
        for suffix in ("", "-wal", "-shm"):
            old.with_name(old.name + suffix).unlink(missing_ok=True)
