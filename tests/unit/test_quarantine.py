from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fleet_controller.config import MIB, QuarantineConfig
from fleet_controller.errors import QuarantineError
from fleet_controller.quarantine import FILE_NAME, PAYLOAD_BYTES_MAX, Quarantine
from fleet_controller.records import Rejected, RejectReason


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.unix_ns = 10**18

    def __call__(self) -> int:
        """The time now."""
        return self.unix_ns


def rejected(name: str, payload: bytes = b"{}", agent_id: str | None = "hn-01", **changes: str) -> Rejected:
    """A rejected result whose identity is its name."""
    reason = RejectReason(changes.get("reason", "unknown_task"))
    detail = changes.get("detail", f"no task {name}")
    return Rejected("fleet/v1/1/hn-01/report", agent_id, reason, detail, payload, name.encode())


OPENED: list[Quarantine] = []


@pytest.fixture(autouse=True)
def close_all() -> Iterator[None]:
    """Whatever a test opened is closed after it."""
    yield
    while OPENED:
        OPENED.pop().close()


def opened(tmp_path: Path, clock: Clock | None = None, **bounds: float) -> Quarantine:
    """The quarantine of this folder."""
    quarantine = Quarantine(tmp_path, QuarantineConfig(**bounds), clock or Clock())  # type: ignore[arg-type]
    OPENED.append(quarantine)
    return quarantine


def test_what_was_kept_is_there_after_a_restart(tmp_path: Path) -> None:
    """An item comes back whole: topic, reason, detail, payload and time."""
    first = opened(tmp_path)
    first.add([rejected("a", b"\x00\xff")])
    first.close()
    (item,) = opened(tmp_path).list()
    assert (item.agent_id, item.reason, item.detail, item.seen) == ("hn-01", "unknown_task", "no task a", 1)
    shown = opened(tmp_path).show(item.id)
    assert shown is not None
    assert (shown.payload, shown.truncated, shown.first_seen_unix_ns) == (b"\x00\xff", False, 10**18)


def test_equal_items_are_counted_not_kept_twice(tmp_path: Path) -> None:
    """A repeat raises the count and the last time, and takes the newest reason."""
    clock = Clock()
    quarantine = opened(tmp_path, clock)
    quarantine.add([rejected("a"), rejected("a"), rejected("b")])
    clock.unix_ns += 5
    quarantine.add([rejected("a", reason="unknown_link", detail="now this")])
    newest, other = quarantine.list()
    assert (newest.seen, newest.reason, newest.detail) == (3, "unknown_link", "now this")
    assert newest.last_seen_unix_ns - newest.first_seen_unix_ns == 5
    assert other.seen == 1
    assert quarantine.reasons() == {"unknown_link": 1, "unknown_task": 1}


def test_a_long_payload_is_cut_and_marked(tmp_path: Path) -> None:
    """Ten megabytes of garbage leave their start and their size."""
    quarantine = opened(tmp_path)
    quarantine.add([rejected("huge", b"x" * 10_000_000, reason="too_large")])
    (item,) = quarantine.list()
    assert (item.payload_bytes, item.truncated) == (10_000_000, True)
    shown = quarantine.show(item.id)
    assert shown is not None
    assert shown.payload == b"x" * PAYLOAD_BYTES_MAX
    assert quarantine.totals().bytes < 300_000


def test_it_stays_within_its_bytes(tmp_path: Path) -> None:
    """At the bound the oldest go and are counted, and the file's own books agree with what it holds."""
    quarantine = opened(tmp_path, max_bytes=MIB)
    for number in range(40):
        quarantine.add([rejected(str(number), bytes(100_000))])
    totals = quarantine.totals()
    assert totals.bytes <= MIB
    assert totals.items + totals.dropped_bytes == 40
    assert totals.bytes == totals.items * 100_512
    assert quarantine.ids() == list(range(40 - totals.items + 1, 41))


def test_one_mad_agent_costs_no_other_its_items(tmp_path: Path) -> None:
    """What is dropped is dropped from who holds most."""
    quarantine = opened(tmp_path, max_bytes=MIB)
    quarantine.add([rejected("good", bytes(50_000), agent_id="hn-02")])
    for number in range(60):
        quarantine.add([rejected(str(number), bytes(100_000), agent_id=None if number % 2 else "hn-01")])
    assert "hn-02" in {item.agent_id for item in quarantine.list()}


def test_old_items_go(tmp_path: Path) -> None:
    """What nobody fixed within the age bound goes, counted; what is still coming in stays."""
    clock = Clock()
    quarantine = opened(tmp_path, clock, max_age_s=100.0)
    quarantine.add([rejected("old"), rejected("again")])
    clock.unix_ns += 90 * 10**9
    quarantine.add([rejected("again")])
    clock.unix_ns += 20 * 10**9
    quarantine.add([rejected("new")])
    assert {item.detail for item in quarantine.list()} == {"no task again", "no task new"}
    assert quarantine.totals().dropped_age == 1


def test_two_processes_at_once(tmp_path: Path) -> None:
    """A person's command removes while the controller adds, and the books stay right."""
    serving, person = opened(tmp_path), opened(tmp_path)
    serving.add([rejected("a"), rejected("b")])
    person.remove([person.ids()[0]])
    serving.add([rejected("c")])
    person.update(person.ids()[0], "unknown_peer", "why now")
    assert [item.detail for item in serving.list()] == ["no task c", "why now"]
    assert [item.detail for item in serving.list(reason="unknown_peer")] == ["why now"]
    assert serving.totals().items == 2
    assert serving.totals().bytes == 2 * 514
    assert serving.ids("unknown_task") == [3]


def test_a_full_disk_keeps_nothing_and_says_so(tmp_path: Path) -> None:
    """When the disk takes no more, nothing is half kept, and it works again once there is room."""
    quarantine = opened(tmp_path)
    quarantine._database.execute("PRAGMA max_page_count = 20")
    with pytest.raises(QuarantineError, match="full"):
        quarantine.add([rejected("small"), rejected("big", bytes(200_000))])
    assert quarantine.totals().items == 0
    quarantine._database.execute("PRAGMA max_page_count = 100000")
    quarantine.add([rejected("small")])
    assert quarantine.totals().items == 1


def test_a_file_that_is_none_is_an_error_with_its_place(tmp_path: Path) -> None:
    """A folder that cannot be made, or a file that is no database, is told by its path."""
    (tmp_path / FILE_NAME).write_bytes(b"this is no database, and long enough to look at" * 10)
    with pytest.raises(QuarantineError, match=FILE_NAME):
        opened(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(QuarantineError, match="file"):
        opened(tmp_path / "file")


def test_garbage_in_topic_and_detail_is_kept(tmp_path: Path) -> None:
    """Text that no UTF-8 has is kept with marks in its place."""
    quarantine = opened(tmp_path)
    quarantine.add([Rejected("bad \ud800", None, RejectReason.BAD_TOPIC, "\udfff", b"", b"x")])
    assert [item.topic for item in quarantine.list()] == ["bad ?"]


def test_a_kill_in_mid_write_leaves_all_or_nothing(tmp_path: Path) -> None:
    """What was not committed is not there, and what was is."""
    quarantine = opened(tmp_path)
    quarantine.add([rejected("kept")])
    quarantine._database.execute("BEGIN IMMEDIATE")
    quarantine._database.execute("DELETE FROM items")
    quarantine._database.close()
    again = opened(tmp_path)
    assert [item.detail for item in again.list()] == ["no task kept"]
    with pytest.raises(QuarantineError):
        quarantine.list()
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
