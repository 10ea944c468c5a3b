"""The store against the real database: by 1.x's own write endpoint, and by the v2 one through nginx."""

# ruff: noqa: S608 - InfluxQL of our own words, for a private database

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ingest_kit import START_UNIX_NS, TASKS, Nginx, accepted, result

from fleet_controller.config import InfluxConfig
from fleet_controller.errors import StoreError, StoreRefusedError, StoreUnavailableError
from fleet_controller.lab.services import Influxd, free_port
from fleet_controller.store.database import Store, _Line, quote_identifier, quote_string
from fleet_controller.store.line_protocol import line, tag_text, text
from probe.messages import Failure, FailureKind, Operation

SINCE = "time > 0"


@pytest.fixture(params=["v1", "v2"])
def server(request: pytest.FixtureRequest, influxd: Influxd, tmp_path: Path) -> Iterator[str]:
    """The address of a server that takes one of the two write endpoints."""
    if request.param == "v1":
        yield influxd.url
        return
    with Nginx(tmp_path / "nginx", influxd.port) as nginx:
        yield nginx.url


@pytest.fixture
def store(server: str) -> Iterator[Store]:
    """A store that has to find out by itself which endpoint there is."""
    made = Store(InfluxConfig(url=server, timeout_s=10.0), TASKS)
    yield made
    made.close()


def field_types(store: Store, measurement: str = "gauge") -> dict[str, str]:
    """What the database says that its fields are."""
    return {row["fieldKey"]: row["fieldType"] for row in store.query(f"SHOW FIELD KEYS FROM {measurement}")}


def test_what_is_stored_is_what_was_measured(store: Store, tmp_path: Path) -> None:
    """Integers stay integers, 3.0 stays a float, nanoseconds stay exact, absent stays absent."""
    values = {"packets_sent": 9_007_199_254_740_993, "delay_median_s": 3.0, "server": 'q"\\ Đà Nẵng, = #'}
    assert store.write(accepted(tmp_path, result(values=values), result(1, values={"packets_sent": 0}))) == []
    first, second = store.query(f"SELECT * FROM gauge WHERE {SINCE}")
    assert first["time"] == START_UNIX_NS
    assert second["time"] == START_UNIX_NS + 1
    assert first["packets_sent"] == 9_007_199_254_740_993
    assert first["server"] == values["server"]
    assert (first["agent_id"], first["scope"], first["ip_version"]) == ("hn-01", "domestic", "4")
    assert (second["delay_median_s"], second["server"]) == (None, None)
    types = field_types(store)
    assert (types["packets_sent"], types["delay_median_s"], types["sequence"]) == ("integer", "float", "integer")
    assert types["fitness_own_load"] == "boolean"
    assert "intercepted" not in types


def test_a_strangers_text_is_stored_printable(store: Store, tmp_path: Path) -> None:
    """Escape sequences, NUL, line breaks and direction marks of a failure's detail or of a value leave blanks only."""
    garbage = "\x1b]0;owned\x07 \x9b2J\x00\r\n\u202e\u2028Đà Nẵng" + bytes(range(256)).decode("latin-1")
    failure = Failure(operation=Operation.TLS, kind=FailureKind.OTHER, detail=garbage)
    values = {"packets_sent": 1, "server": garbage}
    assert store.write(accepted(tmp_path, result(values=values), result(1, failure=failure))) == []
    first, second = store.query(f"SELECT server, failure_detail FROM gauge WHERE {SINCE} AND sequence > 0")
    for stored in (first["server"], second["failure_detail"]):
        assert stored.isprintable()
        assert "Đà Nẵng" in stored
        assert "]0;owned" in stored


def test_curves_are_stored_beside(store: Store, tmp_path: Path) -> None:
    """A curve's samples stand in their own measurement at their own times."""
    steps = [{"offset_s": 0.1 * number, "moved_bytes": number} for number in range(100)]
    store.write(accepted(tmp_path, result(values={"packets_sent": 1, "steps": steps})))
    rows = store.query(f"SELECT moved_bytes FROM gauge_steps WHERE {SINCE} AND agent_id = 'hn-01'")
    assert [(row["time"] - START_UNIX_NS, row["moved_bytes"]) for row in rows] == [
        (100_000_000 * number, number) for number in range(100)
    ]


def test_a_repeat_changes_nothing(store: Store, tmp_path: Path) -> None:
    """The same results written three times are the same points."""
    results = accepted(tmp_path, *(result(number) for number in range(50)))
    for _ in range(3):
        assert store.write(results) == []
    assert store.query(f"SELECT count(packets_sent) FROM gauge WHERE {SINCE}")[0]["count"] == 50


def test_an_empty_batch_asks_nothing() -> None:
    """Nothing to store needs no database."""
    with closing(Store(InfluxConfig(url="http://127.0.0.1:1"), TASKS)) as store:
        assert store.write([]) == []


def test_many_results_are_written_in_bounded_pieces(store: Store, tmp_path: Path) -> None:
    """More lines than one write may have are all stored."""
    steps = [{"offset_s": 0.001 * number, "moved_bytes": number} for number in range(400)]
    results = accepted(tmp_path, *(result(number, values={"packets_sent": 1, "steps": steps}) for number in range(30)))
    assert store.write(results) == []
    assert store.query(f"SELECT count(moved_bytes) FROM gauge_steps WHERE {SINCE}")[0]["count"] == 12_000


def test_a_refused_point_takes_no_good_one_with_it(store: Store, tmp_path: Path) -> None:
    """With a field of another type in the database, bisection finds just the results that it concerns."""
    store.prepare()
    planted = line("gauge", {}, {"server": "1i"}, START_UNIX_NS)
    assert store.write_lines([_Line(0, planted)]) == {}
    good = [result(number) for number in range(100)]
    bad = [result(1000 + number, values={"packets_sent": 1, "server": "text"}) for number in (3, 40, 41)]
    results = accepted(tmp_path, *good[:50], *bad, *good[50:])
    refused = store.write(results)
    assert [one.accepted.sequence for one in refused] == [51, 52, 53]
    assert all("field type conflict" in one.words for one in refused)
    assert store.query(f"SELECT count(packets_sent) FROM gauge WHERE {SINCE}")[0]["count"] == 100


def test_a_line_that_is_no_line_protocol(store: Store) -> None:
    """A malformed line is found among good ones, whatever it is."""
    lines = [line("m", {}, {"figure": "1i"}, number) for number in range(1, 20)]
    lines[7] = "m figure= 8"
    lines[12] = "m,tag=\\ figure=1i 13"
    lines[15] = f"m figure=1i {10**30}"
    refused = store.write_lines([_Line(index, one) for index, one in enumerate(lines)])
    assert sorted(refused) == [7, 12, 15]
    assert store.query(f"SELECT count(figure) FROM m WHERE {SINCE}")[0]["count"] == 16


def test_a_result_that_cannot_be_written_is_refused_alone(store: Store, tmp_path: Path) -> None:
    """A fault of ours while building the points of one result stops no other."""
    first, second = accepted(tmp_path, result(), result(1))
    broken = store.schema._fields["gauge"]["delay_median_s"]
    calls = iter([ZeroDivisionError("ours"), None])

    def fail_once(value: Any) -> str:
        error = next(calls)
        if error is not None:
            raise error
        return broken(value)

    store.schema._fields["gauge"]["delay_median_s"] = fail_once
    refused = store.write([first, second])
    assert [(one.accepted.sequence, "ours" in one.words) for one in refused] == [(1, True)]
    assert len(store.query(f"SELECT packets_sent FROM gauge WHERE {SINCE}")) == 1


def test_a_missing_database_drops_nothing(store: Store, server: str, tmp_path: Path) -> None:
    """404 raises until somebody creates the database; then the same results are stored."""
    results = accepted(tmp_path, result())
    store.write(results)
    httpx.post(f"{server}/query", params={"q": "DROP DATABASE fleet"}).raise_for_status()
    for _ in range(2):
        with pytest.raises(StoreRefusedError, match="database not found"):
            store.write(results)
    httpx.post(f"{server}/query", params={"q": "CREATE DATABASE fleet"}).raise_for_status()
    assert store.write(results) == []
    assert len(store.query(f"SELECT packets_sent FROM gauge WHERE {SINCE}")) == 1


def test_a_killed_database_is_waited_for(store: Store, influxd: Influxd, tmp_path: Path) -> None:
    """No answer is an error to try again after; what had been stored is still there."""
    first, second = accepted(tmp_path, result(), result(1))
    store.write([first])
    influxd.kill()
    with pytest.raises(StoreUnavailableError):
        store.write([second])
    influxd.start()
    assert store.write([second]) == []
    assert len(store.query(f"SELECT packets_sent FROM gauge WHERE {SINCE}")) == 2


def test_a_database_that_starts_later(tmp_path: Path) -> None:
    """A store can be made before its database answers."""
    service = Influxd(tmp_path / "influxd")
    with closing(Store(InfluxConfig(url=service.url), TASKS)) as store:
        with pytest.raises(StoreUnavailableError):
            store.write(accepted(tmp_path, result()))
        with service:
            assert store.write(accepted(tmp_path, result())) == []


@pytest.mark.parametrize("api", ["auto", "v1", "v2"])
def test_a_database_with_accounts(influxd: Influxd, tmp_path: Path, api: Any) -> None:
    """Without the right password nothing is dropped; with it, the same results are stored, by each endpoint."""
    create = "CREATE USER admin WITH PASSWORD 'secret' WITH ALL PRIVILEGES"
    httpx.post(f"{influxd.url}/query", params={"q": create}).raise_for_status()
    influxd.stop()
    configuration = influxd.directory / "influxdb.conf"
    configuration.write_text(configuration.read_text().replace("[http]", "[http]\n  auth-enabled = true"))
    influxd.start()
    (tmp_path / "wrong").write_text("wrong\n")
    (tmp_path / "right").write_text("secret\n")
    with Nginx(tmp_path / "nginx", influxd.port) as nginx:
        url = nginx.url if api == "v2" else influxd.url
        with (
            closing(
                Store(InfluxConfig(url=url, api=api, username="admin", password_file=tmp_path / "wrong"), TASKS)
            ) as refused,
            pytest.raises(StoreRefusedError, match="401"),
        ):
            refused.write(accepted(tmp_path, result()))
        with closing(
            Store(InfluxConfig(url=influxd.url, username="admin", password_file=tmp_path / "right"), TASKS)
        ) as store:
            assert store.write(accepted(tmp_path, result())) == []
            assert len(store.query(f"SELECT packets_sent FROM gauge WHERE {SINCE}")) == 1


def test_a_server_that_is_no_influxdb(tmp_path: Path, influxd: Influxd) -> None:
    """A wrong address is told as what it is, and nothing is dropped."""
    with Nginx(tmp_path / "nginx", influxd.port) as nginx:
        configuration = tmp_path / "nginx" / "nginx.conf"
        nginx.stop()
        configuration.write_text(
            configuration.read_text()
            .replace("rewrite ^", "return 404; rewrite ^")
            .replace("location / {", "location / { return 404;")
        )
        nginx.start()
        store = Store(InfluxConfig(url=nginx.url), TASKS)
        with closing(store), pytest.raises(StoreRefusedError, match="takes no line protocol"):
            store.write(accepted(tmp_path, result()))


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_in_trouble_is_asked_again(tmp_path: Path, influxd: Influxd, status: int) -> None:
    """429 and 5xx are reasons to wait, by either endpoint."""
    with Nginx(tmp_path / "nginx", influxd.port) as nginx:
        nginx.stop()
        configuration = tmp_path / "nginx" / "nginx.conf"
        shim = configuration.read_text()
        configuration.write_text(
            shim.replace("rewrite ^", f"return {status}; rewrite ^").replace(
                "location / {", f"location = /write {{ return {status}; }} location / {{"
            )
        )
        nginx.start()
        for api in ("v1", "v2"):
            store = Store(InfluxConfig(url=nginx.url, api=api), TASKS)
            with closing(store), pytest.raises(StoreUnavailableError, match=str(status)):
                store.write(accepted(tmp_path, result()))


def test_a_batch_that_is_too_big_is_halved(tmp_path: Path, influxd: Influxd) -> None:
    """413 costs nothing but more writes; a single line that is too big is refused alone."""
    with Nginx(tmp_path / "nginx", influxd.port) as nginx:
        nginx.stop()
        configuration = tmp_path / "nginx" / "nginx.conf"
        configuration.write_text(
            configuration.read_text().replace("client_max_body_size 25m", "client_max_body_size 4k")
        )
        nginx.start()
        with closing(Store(InfluxConfig(url=nginx.url, api="v2"), TASKS)) as store:
            long = result(99, values={"packets_sent": 1, "server": "x" * 8000})
            refused = store.write(accepted(tmp_path, *(result(number) for number in range(40)), long))
            assert [one.accepted.sequence for one in refused] == [41]
            assert "413" in refused[0].words
            assert len(store.query(f"SELECT packets_sent FROM gauge WHERE {SINCE}")) == 40


def test_a_question_that_is_not_understood(store: Store) -> None:
    """A syntax error says so with the question; it is no reason to wait."""
    store.prepare()
    with pytest.raises(StoreError, match="SELEKT") as caught:
        store.query("SELEKT 1")
    assert not isinstance(caught.value, StoreUnavailableError | StoreRefusedError)
    assert store.query(f"SELECT nothing FROM nowhere WHERE {SINCE}") == []


def test_a_silent_server_is_given_up(tmp_path: Path) -> None:
    """A server that accepts and never answers costs the time-out and no more."""
    with socket.create_server(("127.0.0.1", free_port())) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        for api in ("auto", "v2"):
            with closing(Store(InfluxConfig(url=url, api=api, timeout_s=0.3), TASKS)) as store:
                before_s = time.monotonic()
                with pytest.raises(StoreUnavailableError):
                    store.write(accepted(tmp_path, result()))
                assert time.monotonic() - before_s < 30


NASTY = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.sampled_from(
    [
        "\\",
        "a\\",
        "\\\\",
        '"',
        '\\"',
        "\n",
        "a\nb 1",
        ",",
        "=",
        " ",
        "a b,c=d e=1i 5",
        "#",
        "'",
        "\r\n",
        "\t",
        "€\U0001f600",
    ]
)


def test_adversarial_strings_come_back_as_they_were(store: Store) -> None:
    """No string in a field or a tag can end its line, change a neighbour or be lost: what goes in comes out."""
    store.prepare()
    counter = iter(range(1, 10**6))

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(tag=NASTY, field=NASTY)
    def round_trip(tag: str, field: str) -> None:
        unix_ns = next(counter)
        written = line("nasty", {"tag": tag, "other": "x"}, {"word": text(field), "figure": "1i"}, unix_ns)
        assert store.write_lines([_Line(0, written), _Line(1, line("after", {}, {"figure": "2i"}, unix_ns))]) == {}
        (row,) = store.query(f"SELECT * FROM nasty WHERE time = {unix_ns}")
        assert row["word"] == field
        assert row.get("tag") == (tag_text(tag) or None)
        assert (row["other"], row["figure"]) == ("x", 1)
        assert len(store.query(f"SELECT figure FROM after WHERE time = {unix_ns}")) == 1

    round_trip()
    assert {row["fieldKey"] for row in store.query("SHOW FIELD KEYS FROM nasty")} == {"word", "figure"}
    assert {row["tagKey"] for row in store.query("SHOW TAG KEYS FROM nasty")} == {"tag", "other"}


@pytest.mark.parametrize("name", ["plain", "with space", 'q"uote', "q'uote", "back\\slash"])
def test_names_and_values_are_quoted_for_questions(store: Store, name: str) -> None:
    """A question about a name or a value with any character in it finds that and nothing else."""
    store.prepare()
    store.write_lines([_Line(0, line("m", {}, {"word": text(name), "other": text("x")}, 5))])
    found = store.query(f"SELECT word FROM m WHERE {SINCE} AND word = {quote_string(name)}")
    assert [row["word"] for row in found] == [name]
    assert store.query(f"SELECT word FROM {quote_identifier('no ' + name)} WHERE {SINCE}") == []
