"""How InfluxDB is spoken to: the two write endpoints, the query endpoint, and what each answer means.

204               stored
400, 422          stored in part or not at all, because of some lines in it     PartialWriteError
413               too much at once                                             PartialWriteError
401, 403, 404     somebody must change something; nothing may be dropped       StoreRefusedError
429, 5xx, silence later perhaps                                                StoreUnavailableError
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, Protocol

import httpx

from fleet_controller.config import InfluxConfig, read_secret
from fleet_controller.errors import PartialWriteError, StoreError, StoreRefusedError, StoreUnavailableError

Api = Literal["v1", "v2"]
_WRITE_V1: Final = "/write"
_WRITE_V2: Final = "/api/v2/write"
_QUERY: Final = "/query"
_STORED: Final = frozenset({200, 204})
_LINES_AT_FAULT: Final = frozenset({400, 413, 422})
_PERSON_NEEDED: Final = frozenset({401, 403, 404})
_WORDS_MAX: Final = 500


class Writer(Protocol):
    """One write endpoint."""

    def write(self, lines: bytes) -> None:
        """Store lines of line protocol, nanoseconds; return once they are durable."""

    def close(self) -> None:
        """Give its connections back."""


class WriterV1:
    """The `/write` endpoint of InfluxDB 1.x."""

    def __init__(self, client: httpx.Client, config: InfluxConfig) -> None:
        self._client = client
        self._parameters = {"db": config.database, "precision": "ns"}

    def write(self, lines: bytes) -> None:
        """Store lines; see the module for what is raised."""
        try:
            answer = self._client.post(_WRITE_V1, params=self._parameters, content=lines)
        except httpx.HTTPError as error:
            raise StoreUnavailableError(no_answer(error)) from None
        if answer.status_code not in _STORED:
            raise_for(answer.status_code, answer.text)

    def close(self) -> None:
        """Nothing: the connections belong to who gave them."""


def new_client(config: InfluxConfig) -> httpx.Client:
    """The client for queries and for the 1.x write endpoint."""
    headers, user = {}, user_of(config)
    token = token_of(config)
    if token is not None:
        headers["Authorization"] = f"Token {token}"
    elif user is not None:
        headers["Authorization"] = "Basic " + base64.b64encode(":".join(user).encode()).decode()
    # No proxy from the environment: the database is named in the configuration and nowhere else.
    return httpx.Client(base_url=config.url, headers=headers, timeout=config.timeout_s, trust_env=False)


def server_version(client: httpx.Client) -> str:
    """What the server says it is ("1.6.7~rc0", "v2.7.11"); empty when it does not say.

    Raises:
        StoreUnavailableError: no answer.
    """
    try:
        return str(client.get("/ping").headers.get("x-influxdb-version", ""))
    except httpx.HTTPError as error:
        raise StoreUnavailableError(no_answer(error)) from None


def detect_api(client: httpx.Client, config: InfluxConfig) -> Api:
    """Which write endpoint the server has, by asking it for the newer one with nothing to write.

    Raises:
        StoreUnavailableError: no answer, or one that does not tell.
        StoreRefusedError: it has neither.
    """
    parameters = {"bucket": config.bucket_name, "org": config.org, "precision": "ns"}
    try:
        answer = client.post(_WRITE_V2, params=parameters, content=b"")
    except httpx.HTTPError as error:
        raise StoreUnavailableError(no_answer(error)) from None
    if answer.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
        raise_for(answer.status_code, answer.text)
    # A missing bucket or database is told in JSON, a missing path in the words of whatever HTTP server it is.
    if answer.status_code != httpx.codes.NOT_FOUND or "json" in answer.headers.get("content-type", ""):
        return "v2"
    version = server_version(client)
    if version.startswith("1."):
        return "v1"
    raise StoreRefusedError(f"{config.url} takes no line protocol: it has no {_WRITE_V2} and is {version or 'unknown'}")


def query(client: httpx.Client, database: str, influxql: str, *, changes: bool = False) -> list[dict[str, Any]]:
    """Ask one InfluxQL question; the rows, each with its columns, its series' tags and `measurement`.

    Times are nanoseconds. `changes` is for a statement that alters the database, which 1.x takes by POST only; all
    others go by GET, which every version takes.

    Raises:
        StoreUnavailableError: no answer, 429 or 5xx.
        StoreRefusedError: 401, 403 or 404.
        StoreError: the database did not understand the question.
    """
    parameters = {"db": database, "q": influxql, "epoch": "ns"}
    try:
        answer = client.request("POST" if changes else "GET", _QUERY, params=parameters)
    except httpx.HTTPError as error:
        raise StoreUnavailableError(no_answer(error)) from None
    if answer.status_code not in _STORED:
        if answer.status_code in _LINES_AT_FAULT:
            raise StoreError(f"query refused: {_words(answer.text)}: {influxql}")
        raise_for(answer.status_code, answer.text)
    return _rows(answer.content, influxql)


def raise_for(status: int, body: str) -> NoReturn:
    """Turn an answer that is not "stored" into the error that says what to do."""
    words = f"{status}: {_words(body)}"
    if status in _LINES_AT_FAULT:
        raise PartialWriteError(words)
    if status in _PERSON_NEEDED:
        raise StoreRefusedError(words)
    raise StoreUnavailableError(words)


def _rows(body: bytes, influxql: str) -> list[dict[str, Any]]:
    try:
        statements = json.loads(body)["results"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreUnavailableError(f"the answer to a query is not InfluxDB's: {error!r}") from None
    rows: list[dict[str, Any]] = []
    for statement in statements:
        if "error" in statement:
            raise StoreError(f"query refused: {statement['error']}: {influxql}")
        for series in statement.get("series", ()):
            fixed = {"measurement": series.get("name", ""), **series.get("tags", {})}
            rows += [{**fixed, **dict(zip(series["columns"], row, strict=True))} for row in series.get("values", ())]
    return rows


def _words(body: str) -> str:
    """The server's own words, out of the JSON that it wraps them in."""
    try:
        told = json.loads(body)
        body = str(told.get("error") or told.get("message") or body)
    except (ValueError, AttributeError):
        pass
    return " ".join(body.split())[:_WORDS_MAX]


def no_answer(error: Exception) -> str:
    """What to say of a server that did not answer."""
    return f"no answer from the database: {type(error).__name__}: {error}"


def token_of(config: InfluxConfig) -> str | None:
    """The configured token, where there is one."""
    return _secret(config.token_file)


def user_of(config: InfluxConfig) -> tuple[str, str] | None:
    """The configured user and password, where there are both."""
    password = _secret(config.password_file)
    if config.username is None or password is None:
        return None
    return config.username, password


def _secret(path: Path | None) -> str | None:
    return read_secret(path) if path is not None else None
