"""Store: results become points in InfluxDB. This module and its two parts alone know InfluxDB."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fleet_controller.config import InfluxConfig
from fleet_controller.errors import PartialWriteError, StoreError, StoreRefusedError
from fleet_controller.records import Accepted, Refused
from fleet_controller.store import influx_http
from fleet_controller.store.influx_http import Writer, WriterV1
from fleet_controller.store.line_protocol import Schema
from probe.tasks.base import AnyTask

_LOG = logging.getLogger(__name__)
# Above 5,000 points a write gets no faster, and its answer later. Below the 25 MB that proxies and servers allow.
LINES_PER_WRITE_MAX: Final = 5000
BYTES_PER_WRITE_MAX: Final = 8 * 1024 * 1024
_DROPPED: Final = re.compile(r"\bdropped=([0-9]+)")

# InfluxQL that 1.x answers; 2.x and 3.x have no databases to create in it.
CREATE_DATABASE: Final = "CREATE DATABASE {database}"


class _Line:
    """One line of line protocol, and which of the results it is of."""

    __slots__ = ("index", "text")

    def __init__(self, index: int, text: str) -> None:
        self.index = index
        self.text = text


class Store:
    """The database.

    Args:
        config: where it is.
        tasks: the kinds of results there are; their types fix the types of the fields.
        lines_per_write_max: how many points one write has at most.

    Raises:
        ConfigError: a task cannot be stored, or a secret cannot be read.
    """

    def __init__(
        self, config: InfluxConfig, tasks: Mapping[str, AnyTask], lines_per_write_max: int = LINES_PER_WRITE_MAX
    ) -> None:
        self.schema = Schema(tasks)
        self._config = config
        self._lines_per_write_max = lines_per_write_max
        self._client = influx_http.new_client(config)
        self._writer: Writer | None = None
        self._prepared = False

    def close(self) -> None:
        """Give the connections back."""
        self._forget_writer()
        self._client.close()

    def prepare(self) -> None:
        """See that the database is there; a 1.x server is asked to create it.

        Raises:
            StoreUnavailableError: no answer.
            StoreRefusedError: it is missing and cannot be created from here; says how to.
        """
        if influx_http.server_version(self._client).startswith("1."):
            self._create_database()
        try:
            self._open_writer().write(b"")
        except PartialWriteError:
            pass  # 2.x calls an empty write a bad request, after it has found the bucket
        except StoreRefusedError as error:
            self._forget_writer()
            raise StoreRefusedError(f"{error} (bucket {self._config.bucket_name!r} at {self._config.url})") from None
        self._prepared = True

    def write(self, accepted: Sequence[Accepted]) -> list[Refused]:
        """Store results; when this returns, all are durable but for those returned.

        A repeat is harmless: the same measurement, tags and time are the same point.

        Raises:
            StoreUnavailableError: try the same results again later.
            StoreRefusedError: a person must act first; then try again.
        """
        refused: dict[int, str] = {}
        lines: list[_Line] = []
        for index, one in enumerate(accepted):
            try:
                lines += [_Line(index, text) for text in self.schema.lines(one)]
            except Exception as error:  # noqa: BLE001 - a fault of ours on one result must not stop the others
                refused[index] = f"the controller could not write it as points: {error!r}"
        if lines:
            refused.update(self.write_lines(lines))
        return [Refused(accepted[index], words) for index, words in sorted(refused.items())]

    def write_lines(self, lines: Sequence[_Line]) -> dict[int, str]:
        """Store lines; what was refused, by index, in the server's words."""
        if not self._prepared:
            self.prepare()
        refused: dict[int, str] = {}
        try:
            for chunk in _chunks(lines, self._lines_per_write_max):
                self._write_chunk(chunk, refused)
        except StoreRefusedError:
            # The server may be another one by the next attempt: ask it again what it has.
            self._forget_writer()
            raise
        return refused

    def query(self, influxql: str) -> list[dict[str, Any]]:
        """Ask one InfluxQL question: rows of columns, tags and `measurement`; times are nanoseconds.

        Raises:
            StoreError: the question was not understood, or no answer came (`StoreUnavailableError`), or it may not
                be asked (`StoreRefusedError`).
        """
        return influx_http.query(self._client, self._config.database, influxql)

    def _write_chunk(self, chunk: list[_Line], refused: dict[int, str]) -> None:
        """Write all; if some are bad, find them by halving, so that no good one is lost with them."""
        try:
            self._open_writer().write("\n".join(one.text for one in chunk).encode())
        except PartialWriteError as error:
            words = str(error)
            if len(chunk) == 1 or _all_dropped(words, len(chunk)):
                refused.update((one.index, words) for one in chunk)
                return
            # Bad lines come in kinds: sorted by measurement, a half is more often all good or all bad.
            ordered = sorted(chunk, key=_measurement)
            middle = len(ordered) // 2
            self._write_chunk(ordered[:middle], refused)
            self._write_chunk(ordered[middle:], refused)

    def _open_writer(self) -> Writer:
        if self._writer is None:
            api = self._config.api
            if api == "auto":
                api = influx_http.detect_api(self._client, self._config)
                _LOG.info("database at %s answered: it takes the %s write endpoint", self._config.url, api)
            self._writer = WriterV1(self._client, self._config) if api == "v1" else _writer_v2(self._config)
        return self._writer

    def _forget_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _create_database(self) -> None:
        statement = CREATE_DATABASE.format(database=quote_identifier(self._config.database))
        try:
            influx_http.query(self._client, self._config.database, statement, changes=True)
        except StoreRefusedError as error:
            # The user may write but not create: the write that follows tells whether that matters.
            _LOG.info("creating the database was refused: %s", error)
        except StoreError as error:
            if "not authorized" not in str(error) and "requires admin" not in str(error):
                raise
            _LOG.info("creating the database was refused: %s", error)


def quote_identifier(name: str) -> str:
    """A name of a database, measurement, tag or field, for InfluxQL."""
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def quote_string(value: str) -> str:
    """A tag's or string field's value, for InfluxQL."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


def _chunks(lines: Sequence[_Line], count_max: int) -> list[list[_Line]]:
    """Lines in writes of a bounded size."""
    chunks: list[list[_Line]] = []
    size = 0
    for one in lines:
        size += len(one.text)
        if not chunks or len(chunks[-1]) >= count_max or size > BYTES_PER_WRITE_MAX:
            chunks.append([])
            size = len(one.text)
        chunks[-1].append(one)
    return chunks


def _measurement(one: _Line) -> str:
    return one.text.partition(",")[0]


def _all_dropped(words: str, count: int) -> bool:
    """Whether the server says that it stored none of these: then there is nothing to search for."""
    told = _DROPPED.search(words)
    return told is not None and int(told[1]) == count


def _writer_v2(config: InfluxConfig) -> Writer:
    # influxdb-client takes half a second to import: a server that lacks its endpoint, and `status`, need not wait.
    from fleet_controller.store.influx_v2 import WriterV2  # noqa: PLC0415 - see above

    return WriterV2(config)
