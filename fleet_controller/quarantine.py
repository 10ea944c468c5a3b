"""Quarantine: what could not be accepted, on disk, with its reason, until somebody fixes the cause and replays it.

One SQLite file, so that a person can look into it while the controller runs. What it holds counts as taken, so it is
as durable as the database is: a write returns after the disk has it.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fleet_controller.config import QuarantineConfig
from fleet_controller.errors import QuarantineError
from fleet_controller.records import Rejected

_LOG = logging.getLogger(__name__)
FILE_NAME: Final = "quarantine.sqlite"
# The broker's own limit of a packet; what is longer can never be replayed, and its start tells what it was.
PAYLOAD_BYTES_MAX: Final = 256 * 1024
# What a row costs beside its payload, roughly: topic, reason, detail, index.
_ROW_OVERHEAD_BYTES: Final = 512
# Emptied down to this share of the bound at once, so that a flood does not pay for it at every message.
_EMPTY_TO_RATIO: Final = 0.9
# `serve` and a person's command may want the file in the same moment.
_BUSY_TIME_OUT_S: Final = 10.0
_LIST_MAX: Final = 1000

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS items (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    identity BLOB NOT NULL UNIQUE,
    topic TEXT NOT NULL,
    agent_id TEXT,
    reason TEXT NOT NULL,
    detail TEXT NOT NULL,
    payload BLOB NOT NULL,
    payload_bytes INTEGER NOT NULL,
    size INTEGER NOT NULL,
    first_seen_unix_ns INTEGER NOT NULL,
    last_seen_unix_ns INTEGER NOT NULL,
    seen INTEGER NOT NULL DEFAULT 1
);
CREATE INDEX IF NOT EXISTS items_last_seen ON items (last_seen_unix_ns);
CREATE TABLE IF NOT EXISTS totals (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
INSERT OR IGNORE INTO totals VALUES ('bytes', 0), ('dropped_age', 0), ('dropped_bytes', 0);
CREATE TRIGGER IF NOT EXISTS items_added AFTER INSERT ON items
    BEGIN UPDATE totals SET value = value + new.size WHERE name = 'bytes'; END;
CREATE TRIGGER IF NOT EXISTS items_removed AFTER DELETE ON items
    BEGIN UPDATE totals SET value = value - old.size WHERE name = 'bytes'; END;
"""
_ADD: Final = """
INSERT INTO items (identity, topic, agent_id, reason, detail, payload, payload_bytes, size,
                   first_seen_unix_ns, last_seen_unix_ns)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (identity) DO UPDATE SET seen = seen + 1, last_seen_unix_ns = excluded.last_seen_unix_ns,
    reason = excluded.reason, detail = excluded.detail
"""
_COLUMNS: Final = (
    "id, identity, topic, agent_id, reason, detail, payload_bytes, first_seen_unix_ns, last_seen_unix_ns, seen, "
    "length(payload)"
)


@dataclass(frozen=True, slots=True)
class Item:
    """One quarantined result (in a report of its own) or whole message. `payload` is given by `show` only."""

    id: int
    identity: bytes
    topic: str
    agent_id: str | None
    reason: str
    detail: str
    payload_bytes: int
    first_seen_unix_ns: int
    last_seen_unix_ns: int
    seen: int
    truncated: bool
    payload: bytes | None = None


@dataclass(frozen=True, slots=True)
class Totals:
    """How much is held, and what was dropped to keep it bounded, since the file was made."""

    items: int
    bytes: int
    dropped_age: int
    dropped_bytes: int


# `list` is a method's name below.
Items = list[Item]
Numbers = list[int]


class Quarantine:
    """The file and its bounds. May be used from several threads and several processes at once.

    Args:
        directory: where the file lives; made if missing.
        config: its bounds.
        now_unix_ns: the clock that ages are told by.

    Raises:
        QuarantineError: the file cannot be opened.
    """

    def __init__(
        self, directory: Path, config: QuarantineConfig, now_unix_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._config = config
        self._now_unix_ns = now_unix_ns
        self._lock = threading.Lock()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                directory / FILE_NAME, timeout=_BUSY_TIME_OUT_S, isolation_level=None, check_same_thread=False
            )
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            with suppress(AttributeError):  # it may not even have been opened
                self._database.close()
            raise QuarantineError(f"{directory / FILE_NAME}: {error}") from None

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def add(self, rejected: Sequence[Rejected]) -> None:
        """Keep these; when this returns, they are on the disk. A repeat only counts up.

        Raises:
            QuarantineError: the disk did not take them; nothing of this call was kept.
        """
        if not rejected:
            return
        now = self._now_unix_ns()
        with self._transaction() as database:
            database.executemany(_ADD, [_row(one, now) for one in rejected])
            self._drop_old(database, now)
            self._drop_surplus(database)

    def list(self, limit: int = 100, reason: str | None = None) -> Items:
        """The newest items, without their payload."""
        condition = "" if reason is None else "WHERE reason = ?"
        arguments = () if reason is None else (reason,)
        return self._read(f"{condition} ORDER BY last_seen_unix_ns DESC, id DESC LIMIT ?", (*arguments, limit))

    def ids(self, reason: str | None = None) -> Numbers:
        """Every item's number, oldest first."""
        with self._reading() as database:
            if reason is None:
                rows = database.execute("SELECT id FROM items ORDER BY id").fetchall()
            else:
                rows = database.execute("SELECT id FROM items WHERE reason = ? ORDER BY id", (reason,)).fetchall()
        return [number for (number,) in rows]

    def show(self, number: int) -> Item | None:
        """One item with its payload; absent if there is none of this number."""
        with self._reading() as database:
            row = database.execute(f"SELECT {_COLUMNS}, payload FROM items WHERE id = ?", (number,)).fetchone()  # noqa: S608 - our own column list
        return _item(row) if row is not None else None

    def remove(self, numbers: Iterable[int]) -> None:
        """Forget items that were accepted after all."""
        with self._transaction() as database:
            database.executemany("DELETE FROM items WHERE id = ?", [(number,) for number in numbers])

    def update(self, number: int, reason: str, detail: str) -> None:
        """Note why an item is still here."""
        with self._transaction() as database:
            database.execute("UPDATE items SET reason = ?, detail = ? WHERE id = ?", (reason, detail, number))

    def totals(self) -> Totals:
        """How much is held and what was dropped."""
        with self._reading() as database:
            values = dict(database.execute("SELECT name, value FROM totals").fetchall())
            (items,) = database.execute("SELECT count(*) FROM items").fetchone()
        return Totals(items, values["bytes"], values["dropped_age"], values["dropped_bytes"])

    def reasons(self) -> dict[str, int]:
        """How many items there are of each reason."""
        with self._reading() as database:
            return dict(database.execute("SELECT reason, count(*) FROM items GROUP BY reason").fetchall())

    def _drop_old(self, database: sqlite3.Connection, now: int) -> None:
        oldest = now - round(self._config.max_age_s * 1e9)
        dropped = database.execute("DELETE FROM items WHERE last_seen_unix_ns < ?", (oldest,)).rowcount
        _count_dropped(database, "dropped_age", dropped)

    def _drop_surplus(self, database: sqlite3.Connection) -> None:
        """Empty it to below its bound, the oldest of who holds most first: one mad agent costs no other its items."""
        held = _held_bytes(database)
        if held <= self._config.max_bytes:
            return
        dropped = 0
        while held > self._config.max_bytes * _EMPTY_TO_RATIO:
            (agent,) = database.execute(
                "SELECT agent_id FROM items GROUP BY agent_id ORDER BY sum(size) DESC LIMIT 1"
            ).fetchone()
            dropped += _drop_some_of(database, agent)
            held = _held_bytes(database)
        _count_dropped(database, "dropped_bytes", dropped)
        _LOG.warning("quarantine was full: dropped its %d oldest items of the agents that hold most", dropped)

    def _read(self, tail: str, arguments: tuple[object, ...]) -> Items:
        with self._reading() as database:
            rows = database.execute(f"SELECT {_COLUMNS}, NULL FROM items {tail}", arguments).fetchall()  # noqa: S608 - our own words
        return [_item(row) for row in rows]

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._database
            except sqlite3.Error as error:
                raise QuarantineError(f"the quarantine cannot be read: {error}") from None

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._database.execute("BEGIN IMMEDIATE")
                yield self._database
                self._database.execute("COMMIT")
            except BaseException as error:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise QuarantineError(f"the quarantine cannot be written: {error}") from None
                raise


def _row(rejected: Rejected, now: int) -> tuple[object, ...]:
    kept = rejected.payload[:PAYLOAD_BYTES_MAX]
    # A topic or detail out of garbage may hold what no UTF-8 has.
    topic, detail = (text.encode(errors="replace").decode() for text in (rejected.topic, rejected.detail))
    return (
        rejected.identity, topic, rejected.agent_id, rejected.reason.value, detail, kept, len(rejected.payload),
        len(kept) + _ROW_OVERHEAD_BYTES, now, now,
    )  # fmt: skip


def _item(row: tuple[object, ...]) -> Item:
    *columns, kept_bytes, payload = row
    return Item(*columns, kept_bytes != columns[6], payload)  # type: ignore[arg-type, call-arg]  # the columns are the schema's


def _held_bytes(database: sqlite3.Connection) -> int:
    (held,) = database.execute("SELECT value FROM totals WHERE name = 'bytes'").fetchone()
    return int(held)


def _drop_some_of(database: sqlite3.Connection, agent: str | None) -> int:
    """Drop an agent's oldest items, a tenth of them but at least one."""
    (count,) = database.execute("SELECT count(*) FROM items WHERE agent_id IS ?", (agent,)).fetchone()
    oldest = "SELECT id FROM items WHERE agent_id IS ? ORDER BY last_seen_unix_ns, id LIMIT ?"
    return database.execute(f"DELETE FROM items WHERE id IN ({oldest})", (agent, max(1, count // 10))).rowcount  # noqa: S608 - our own words


def _count_dropped(database: sqlite3.Connection, name: str, dropped: int) -> None:
    if dropped:
        database.execute("UPDATE totals SET value = value + ? WHERE name = ?", (dropped, name))
