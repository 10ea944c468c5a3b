from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from spool_parts import (
    BOOT_A,
    LIMITS,
    ROOMY,
    ManualClock,
    add,
    batch_of,
    draft,
    open_spool,
    receipt,
    result,
    results_of,
    sequences_of,
)

from fleet_controller.lab.services import die_with_parent
from probe.clock import Instant
from probe.errors import SpoolError
from probe.messages import NotRunReason
from probe.spool.spool import Spool

SUPPORT = Path(__file__).parents[1] / "support"
# Tells what it did line by line, so that the parent knows what was durable when it killed it.
WRITER = """
import sys
from pathlib import Path
from probe.clock import Instant
from spool_parts import ManualClock, draft, open_spool, result

clock = ManualClock()
spool = open_spool(Path(sys.argv[1]), clock)
while True:
    clock.pass_s(1)
    row = spool.begin(draft(clock), Instant.now(clock))
    print("begun", flush=True)
    if sys.argv[2] == "begin":
        sys.stdin.read()
    print("finished", spool.finish(row, result(clock)), flush=True)
"""


def start_writer(path: Path, where: str) -> subprocess.Popen[str]:
    """A process that writes until it is killed, or that waits after its first `begin`."""
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), where],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{SUPPORT}{os.pathsep}{SUPPORT.parents[1]}"},
        preexec_fn=die_with_parent,  # noqa: PLW1509 - only sets a flag
    )


def test_a_kill_between_begin_and_finish_leaves_a_trace(tmp_path: Path) -> None:
    """The outage is the most valuable record: the run that died with the process is a result."""
    path = tmp_path / "spool.db"
    with start_writer(path, "begin") as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "begun\n"
        writer.kill()
    spool = open_spool(path, ManualClock())
    assert spool.recovered == 1
    (interrupted,) = results_of(batch_of(spool))
    assert interrupted.not_run is not None
    assert interrupted.not_run.reason is NotRunReason.INTERRUPTED
    spool.close()


def test_a_kill_while_writing_loses_nothing_that_was_confirmed(tmp_path: Path) -> None:
    """Each result whose number was given is there after kill -9, and no number was given twice."""
    path = tmp_path / "spool.db"
    confirmed = 0
    for _ in range(3):
        with start_writer(path, "run") as writer:
            assert writer.stdout is not None
            for count, line in enumerate(writer.stdout):
                confirmed = max(confirmed, int(line.partition(" ")[2] or 0))
                if count == 100:
                    writer.kill()
    spool = open_spool(path, ManualClock())
    numbers = sequences_of(batch_of(spool, results_max=5000))
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= confirmed > 100
    spool.close()


@pytest.mark.parametrize("damage", ["garbage", "cut", "middle", "foreign", "newer"])
def test_a_damaged_file_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    """Whatever is in the file, the agent starts with a new one of another space, and the old one is kept for a look."""
    path, clock = tmp_path / "spool.db", ManualClock()
    spool = open_spool(path, clock)
    for number in range(300):
        add(spool, clock, number, values={"text": "x" * 1000})
    old_space = spool.space
    spool.close()
    spoil(path, damage)
    spool = open_spool(path, clock)
    assert spool.space != old_space
    assert add(spool, clock) == 1
    spool.close()
    assert len(list(tmp_path.glob("spool.db.damaged-*"))) == 1
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def spoil(path: Path, how: str) -> None:
    """Damage a spool file in one of the ways that cards and people do."""
    sound = path.read_bytes()
    if how == "garbage":
        path.write_bytes(os.urandom(5000))
    elif how == "cut":
        path.write_bytes(sound[: len(sound) // 2])
    elif how == "middle":
        path.write_bytes(sound[:8192] + os.urandom(len(sound) - 8192))
    else:
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA application_id = 1" if how == "foreign" else "PRAGMA user_version = 99")
        connection.commit()
        connection.close()


def test_few_damaged_files_are_kept(tmp_path: Path) -> None:
    """A dying card damages the file again and again; it must not fill up with copies."""
    path = tmp_path / "spool.db"
    for _ in range(5):
        path.write_bytes(os.urandom(5000))
        open_spool(path, ManualClock()).close()
    assert len(list(tmp_path.glob("spool.db.damaged-*"))) == 2


def overwrite(path: Path) -> None:
    """Put garbage over the whole file but its first page, as a failing card does."""
    checkpoint = sqlite3.connect(path)
    checkpoint.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    checkpoint.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 4096))


def test_damage_while_running_costs_the_past_only(tmp_path: Path) -> None:
    """A card that fails under a running agent: the next write goes to a new file, also of a run that was open."""
    path, clock = tmp_path / "spool.db", ManualClock()
    spool = open_spool(path, clock)
    for number in range(300):
        add(spool, clock, number, values={"text": "x" * 1000})
    row = spool.begin(draft(clock), Instant.now(clock))
    old_space = spool.space
    overwrite(path)
    another = spool.begin(draft(clock), Instant.now(clock))
    assert spool.space != old_space
    assert another != row
    spool.finish(row, result(clock, 1))
    spool.finish(another, result(clock, 2))
    assert [found.values for found in results_of(batch_of(spool))] == [{"number": 1}, {"number": 2}]
    spool.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 6 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)], check=True, timeout=10)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True, timeout=10)


@pytest.mark.needs_root
def test_a_full_disk_keeps_the_newest(small_disk: Path) -> None:
    """Without a byte left the oldest make way: each result is kept or counted, and nothing raises."""
    clock = ManualClock()
    # Blind to the disk's free space, so that the real ENOSPC is met.
    spool = Spool(small_disk / "spool.db", LIMITS, clock, BOOT_A, free_disk=lambda _: ROOMY)
    for number in range(1200):
        spool.finish(spool.begin(draft(clock), Instant.now(clock)), result(clock, number, values={"text": "x" * 4000}))
    status = spool.status()
    assert status.results + status.dropped_disk == 1200
    assert status.dropped_disk > 100
    assert status.lost_writes == 0
    newest = spool.rows(5000)[-1]
    assert newest.sequence == 1200
    while (batch := spool.batch((), 500, 200_000)) is not None:
        spool.settle(receipt(batch.space, batch.entries[-1].sequence))
    assert spool.status().results == 0
    spool.close()


@pytest.mark.needs_root
def test_a_disk_filled_by_others_stops_no_measurement(small_disk: Path) -> None:
    """Others fill the disk: writes fail with an error of ours, are counted, and work again when it is mended."""
    clock = ManualClock()
    spool = Spool(small_disk / "spool.db", LIMITS, clock, BOOT_A, free_disk=lambda _: ROOMY)
    add(spool, clock)
    hog = small_disk / "hog"
    lost = 0
    with hog.open("wb", buffering=0) as file:
        for _ in range(2000):
            fill(file.fileno())
            try:
                add(spool, clock, values={"text": "x" * 4000})
            except SpoolError:
                lost += 1
    assert lost > 0
    assert spool.lost_writes == lost
    hog.unlink()
    add(spool, clock, 7)
    spool.enforce()
    status = spool.status()
    assert status.lost_writes == lost
    assert status.results + status.dropped_disk + lost == 2002
    spool.close()
    assert (small_disk / "spool.db.reserve").exists()


def fill(descriptor: int) -> None:
    """Write until the disk is full."""
    try:
        while True:
            os.write(descriptor, b"x" * 4096)
    except OSError:
        return


@pytest.mark.needs_root
def test_an_agent_can_start_on_a_full_disk(small_disk: Path) -> None:
    """The reserve is what a start on a full disk lives on; what was there is still there."""
    clock = ManualClock()
    spool = open_spool(small_disk / "spool.db", clock)
    add(spool, clock)
    spool.begin(draft(clock), Instant.now(clock))
    spool.close()
    with (small_disk / "hog").open("wb", buffering=0) as file:
        fill(file.fileno())
    spool = open_spool(small_disk / "spool.db", clock)
    assert spool.recovered == 1
    add(spool, clock)
    assert spool.status().results == 3
    spool.close()


def test_a_full_database_makes_room(tmp_path: Path) -> None:
    """SQLite's own limit of pages is a full disk to the spool: the oldest make way, counted."""
    clock = ManualClock()
    spool = open_spool(tmp_path / "spool.db", clock)
    spool._file.execute("PRAGMA max_page_count = 300")
    for number in range(600):
        add(spool, clock, number, values={"text": "x" * 4000})
    status = spool.status()
    assert status.results + status.dropped_disk == 600
    assert status.dropped_disk > 300
    spool.close()


def test_a_place_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    """No folder can be made there: an error with the path, not a traceback of SQLite."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError, match="cannot be opened"):
        open_spool(tmp_path / "file" / "spool.db", ManualClock())


@pytest.mark.needs_root
def test_damage_on_a_full_disk_is_not_for_ever(small_disk: Path) -> None:
    """Where there is no room for a new file, what comes meanwhile is lost and counted; with room, it goes on."""
    path, clock = small_disk / "spool.db", ManualClock()
    spool = open_spool(path, clock)
    for number in range(300):
        add(spool, clock, number, values={"text": "x" * 1000})
    overwrite(path)
    (small_disk / "spool.db.reserve").unlink()
    with (small_disk / "hog").open("wb", buffering=0) as file:
        fill(file.fileno())
    for _ in range(3):
        with pytest.raises(SpoolError):
            add(spool, clock)
        with pytest.raises(SpoolError):
            spool.status()
        with pytest.raises(SpoolError):
            spool.enforce()
    (small_disk / "hog").unlink()
    add(spool, clock, 7)
    spool.enforce()
    assert [found.values for found in results_of(batch_of(spool))] == [{"number": 7}]
    assert spool.status().lost_writes == 3
    spool.close()
    assert len(list(small_disk.glob("spool.db.damaged-*[0-9]"))) == 1


def test_a_damaged_list_of_free_pages_is_an_error_of_ours(tmp_path: Path) -> None:
    """What cannot be given back to the disk is told as every other problem of the spool is, and writing goes on."""
    path, clock = tmp_path / "spool.db", ManualClock()
    spool = open_spool(path, clock)
    for number in range(800):
        add(spool, clock, number, values={"text": "x" * 4000})
    while (batch := spool.batch((), 500, 200_000)) is not None:
        spool.settle(receipt(batch.space, batch.entries[-1].sequence))
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    other.close()
    with path.open("r+b") as file:
        file.seek(32)  # the number of the first page of that list (SQLite's file format, section 1.3)
        trunk = int.from_bytes(file.read(4), "big")
        file.seek((trunk - 1) * 4096)
        file.write(b"\xff" * 4096)
    spool._file._connection.execute("PRAGMA shrink_memory")  # what it has read already is not what is there now
    with pytest.raises(SpoolError, match="malformed"):
        spool.enforce()
    add(spool, clock, 7)
    assert spool.status().results == 1
    spool.close()
