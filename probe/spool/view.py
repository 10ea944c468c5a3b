"""What stands in a spool, for people: counters and rows, also read from outside while an agent uses the file."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import msgspec

from probe.errors import SpoolError
from probe.messages import Result, SpoolStatus

# Runs one SQL statement and gives all its rows.
Execute = Callable[..., list[tuple[Any, ...]]]


@dataclass(frozen=True, slots=True)
class SpoolRow:
    """One result as it stands in the spool. A `running` one has no number yet; `cause` is why one is set aside."""

    state: Literal["running", "waiting", "set_aside"]
    result: Result
    size_bytes: int
    space: str | None = None
    sequence: int | None = None
    cause: str | None = None


class SpoolView:
    """A spool opened for reading only.

    Raises:
        SpoolError: there is none, or it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        try:
            if not path.exists():
                raise SpoolError(f"{path}: there is no spool here; has the agent run?")
            # Without a log beside it nobody has the file open, and only `immutable` opens it where no file can be made.
            mode = "mode=ro" if path.with_name(path.name + "-wal").exists() else "mode=ro&immutable=1"
        except OSError as error:
            raise SpoolError(f"{path}: {error.strerror}; run this as the agent's user") from None
        self._path = path
        with self._translated():
            self._connection = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True)

    def __enter__(self) -> Self:
        """The view itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def status(self) -> SpoolStatus:
        """What waits, and what had to be dropped.

        Raises:
            SpoolError: it cannot be read.
        """
        with self._translated():
            return read_status(self._execute)

    def rows(self, limit: int) -> tuple[SpoolRow, ...]:
        """The oldest `limit` rows of each state.

        Raises:
            SpoolError: it cannot be read.
        """
        with self._translated():
            return read_rows(self._execute, limit)

    def _execute(self, statement: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        return self._connection.execute(statement, parameters).fetchall()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise SpoolError(f"{self._path}: {error}") from error


def read_status(execute: Execute) -> SpoolStatus:
    """Count what waits in an open spool; `bytes` is the file without its free pages."""
    pages, free, page_bytes = (
        execute(f"PRAGMA {name}")[0][0] for name in ("page_count", "freelist_count", "page_size")
    )
    oldest = execute("SELECT start_unix_ns FROM results ORDER BY position LIMIT 1")
    counters = {name: count for name, count in execute("SELECT key, value FROM meta") if name != "spool_id"}
    return SpoolStatus(
        results=execute("SELECT count(*) FROM results")[0][0],
        bytes=(pages - free) * page_bytes,
        oldest_unix_ns=oldest[0][0] if oldest else None,
        **counters,
    )


def read_rows(execute: Execute, limit: int) -> tuple[SpoolRow, ...]:
    """The oldest `limit` readable rows of each state of an open spool: waiting first, then set aside, then running."""
    numbered = "SELECT {} FROM {} JOIN spaces ON spaces.id = space ORDER BY {} LIMIT ?"
    waiting = execute(numbered.format("name, sequence, body", "results", "position"), (limit,))
    aside = execute(numbered.format("name, sequence, body, cause", "set_aside", "set_aside.id"), (limit,))
    running = execute("SELECT body FROM running ORDER BY id LIMIT ?", (limit,))
    found = (
        *(_row("waiting", body, space, sequence) for space, sequence, body in waiting),
        *(_row("set_aside", body, space, sequence, cause) for space, sequence, body, cause in aside),
        *(_row("running", body) for (body,) in running),
    )
    return tuple(row for row in found if row is not None)


def _row(
    state: Literal["running", "waiting", "set_aside"],
    body: bytes,
    space: str | None = None,
    sequence: int | None = None,
    cause: str | None = None,
) -> SpoolRow | None:
    """The row, or nothing where a later version of this program wrote it."""
    try:
        result = msgspec.json.decode(body, type=Result)
    except msgspec.DecodeError:
        return None
    return SpoolRow(state=state, result=result, size_bytes=len(body), space=space, sequence=sequence, cause=cause)
