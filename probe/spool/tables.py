"""What the spool's file holds, and whether a file is one: tables, settings, SQLite's words for damage."""

from __future__ import annotations

import sqlite3
import uuid
from typing import Final

# Marks the file as ours (SQLite `application_id`); the version grows with the schema.
_APPLICATION_ID: Final = 0x50464C54
_SCHEMA_VERSION: Final = 1
# Of 4 KiB each: the log is folded into the file at 1 MiB and cut back to that, so it stays bounded.
_CHECKPOINT_PAGES: Final = 256
_JOURNAL_BYTES_MAX: Final = 1024 * 1024

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


def prepare(connection: sqlite3.Connection) -> str:
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
