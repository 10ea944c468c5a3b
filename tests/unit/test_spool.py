from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from spool_parts import (
    BOOT_A,
    BOOT_B,
    MIB,
    ROOMY,
    UNSYNCHRONISED,
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

from probe import config
from probe.clock import Instant
from probe.errors import SpoolError
from probe.messages import NotRunReason
from probe.spool.spool import RESULT_BYTES_MAX, Spool


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands still."""
    return ManualClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The spool's file, in a folder that does not exist yet."""
    return tmp_path / "state" / "spool.db"


@pytest.fixture
def spool(path: Path, clock: ManualClock) -> Iterator[Spool]:
    """An empty spool."""
    opened = open_spool(path, clock)
    yield opened
    opened.close()


def test_a_finished_result_is_sent_with_its_number(spool: Spool, clock: ManualClock) -> None:
    """What is finished replaces the draft and goes out once, numbered from 1."""
    row = spool.begin(draft(clock), Instant.now(clock))
    assert spool.batch((), 500, 200_000) is None
    finished = result(clock, 7)
    assert spool.finish(row, finished) == 1
    batch = batch_of(spool)
    assert results_of(batch) == [finished]
    assert (batch.space, batch.floor, sequences_of(batch)) == (spool.space, 1, [1])


def test_the_space_names_boot_and_file(spool: Spool) -> None:
    """A sequence space is the boot and the spool file, so a number never means two results."""
    boot, _, spool_id = spool.space.partition("-")
    assert boot == BOOT_A[:12]
    assert len(spool_id) == 8


def test_a_row_is_finished_once(spool: Spool, clock: ManualClock) -> None:
    """Finishing a row twice, or one that was never begun, is refused: it would make a result twice."""
    row = spool.begin(draft(clock), Instant.now(clock))
    spool.finish(row, result(clock))
    for wrong in (row, row + 1):
        with pytest.raises(SpoolError, match="was not begun"):
            spool.finish(wrong, result(clock))
    assert spool.status().results == 1


def test_what_was_open_at_a_crash_is_sent_as_interrupted(path: Path, clock: ManualClock) -> None:
    """A run that the power ended becomes a result that says so."""
    first = open_spool(path, clock)
    first.begin(draft(clock), Instant.now(clock))
    add(first, clock, 1)
    first.close()
    second = open_spool(path, clock)
    assert second.recovered == 1
    values, interrupted = results_of(batch_of(second))
    assert values.values == {"number": 1}
    assert interrupted.not_run is not None
    assert interrupted.not_run.reason is NotRunReason.INTERRUPTED
    second.close()


def test_numbers_go_on_after_a_restart(path: Path, clock: ManualClock) -> None:
    """Within one boot the numbers go on, also when all rows of them are gone."""
    first = open_spool(path, clock)
    assert [add(first, clock, n) for n in range(3)] == [1, 2, 3]
    batch_of(first)
    assert first.settle(receipt(first.space, 3)) == 3
    first.close()
    second = open_spool(path, clock)
    assert second.space == first.space
    assert add(second, clock) == 4
    second.close()


def test_a_new_boot_has_numbers_of_its_own(path: Path, clock: ManualClock) -> None:
    """Old rows stay sendable in their old space; a report never mixes spaces."""
    first = open_spool(path, clock)
    add(first, clock, 1)
    first.close()
    second = open_spool(path, clock, boot=BOOT_B)
    assert add(second, clock, 2) == 1
    old = batch_of(second)
    assert (old.space, sequences_of(old)) == (first.space, [1])
    new = second.batch([old.positions], 500, 200_000)
    assert new is not None
    assert (new.space, sequences_of(new)) == (second.space, [1])
    assert second.settle(receipt(first.space, 1)) == 1
    assert second.status().results == 1
    second.close()


def test_what_is_on_its_way_is_left_out(spool: Spool, clock: ManualClock) -> None:
    """Ranges to skip are honoured in any order, also where they overlap and where the rows are gone."""
    for number in range(10):
        add(spool, clock, number)
    batch = spool.batch([(7, 8), (1, 2), (2, 3), (5, 5)], 500, 200_000)
    assert batch is not None
    assert sequences_of(batch) == [4]
    batch = spool.batch([(1, 6), (9, 10)], 500, 200_000)
    assert batch is not None
    assert sequences_of(batch) == [7, 8]
    assert spool.batch([(1, 10)], 500, 200_000) is None


def test_a_batch_keeps_its_bounds(spool: Spool, clock: ManualClock) -> None:
    """A report has at most so many results, and so many bytes once encoded."""
    for number in range(20):
        add(spool, clock, number, values={"text": "x" * 1000})
    assert len(batch_of(spool, results_max=3).entries) == 3
    batch = batch_of(spool, bytes_max=5000)
    assert 1 <= len(batch.entries) < 5
    assert len(msgspec.json.encode(batch.entries)) <= 5000


def test_a_row_over_the_packet_size_lets_others_pass(spool: Spool, clock: ManualClock) -> None:
    """A broker with small packets blocks the large rows only, and they stay."""
    add(spool, clock, values={"text": "x" * 9000})
    add(spool, clock, 2)
    assert sequences_of(batch_of(spool, bytes_max=4000)) == [2]
    assert spool.status().results == 2


def test_a_result_that_fits_no_report_is_set_aside(spool: Spool, clock: ManualClock) -> None:
    """It is counted and kept for a look, its number is used, and the line moves on."""
    assert add(spool, clock, values={"text": "x" * RESULT_BYTES_MAX}) == 1
    assert add(spool, clock, 2) == 2
    batch = batch_of(spool)
    assert (batch.floor, sequences_of(batch)) == (2, [2])
    assert spool.status().set_aside == 1
    (aside,) = [row for row in spool.rows(10) if row.state == "set_aside"]
    assert (aside.sequence, aside.size_bytes > RESULT_BYTES_MAX) == (1, True)


def test_the_publisher_can_set_a_result_aside(spool: Spool, clock: ManualClock) -> None:
    """What no broker takes leaves the line with its cause; the floor follows."""
    for number in range(3):
        add(spool, clock, number)
    assert spool.set_aside(spool.space, (1, 99), "the broker hangs up") == 1
    assert batch_of(spool).floor == 2
    assert [row.cause for row in spool.rows(10) if row.state == "set_aside"] == ["the broker hangs up"]


def test_a_receipt_deletes_what_it_names(spool: Spool, clock: ManualClock) -> None:
    """Contiguous numbers and ranges beyond go; holes stay, and the floor is the lowest of them."""
    for number in range(10):
        add(spool, clock, number)
    batch_of(spool)
    assert spool.settle(receipt(spool.space, 2, (5, 6), (9, 9))) == 5
    left = batch_of(spool)
    assert (left.floor, sequences_of(left)) == (3, [3, 4, 7, 8, 10])
    assert spool.settle(receipt(spool.space, 2, (5, 6), (9, 9))) == 0


def test_a_receipt_deletes_nothing_unsent(spool: Spool, clock: ManualClock) -> None:
    """A receipt cannot speak of what never left this process."""
    for number in range(4):
        add(spool, clock, number)
    batch_of(spool, results_max=2)
    assert spool.settle(receipt(spool.space, 4)) == 2
    assert sequences_of(batch_of(spool)) == [3, 4]


def test_what_an_earlier_process_sent_is_sent_again(path: Path, clock: ManualClock) -> None:
    """After a restart nothing counts as sent, and the same bytes go again: the repeat is harmless."""
    first = open_spool(path, clock)
    add(first, clock)
    sent = batch_of(first)
    first.close()
    second = open_spool(path, clock)
    assert second.settle(receipt(second.space, 1)) == 0
    again = batch_of(second)
    assert [bytes(entry.result) for entry in again.entries] == [bytes(entry.result) for entry in sent.entries]
    assert second.settle(receipt(second.space, 1)) == 1
    second.close()


@pytest.mark.parametrize(
    ("contiguous", "beyond"),
    [(3, ()), (2**70, ()), (-5, ()), (0, ((9, 10),)), (0, ((2, 1),)), (0, ((-3, 0),)), (1, ((2, 2**64),))],
)
def test_a_receipt_that_makes_no_sense_deletes_nothing(
    spool: Spool, clock: ManualClock, contiguous: int, beyond: tuple[tuple[int, int], ...]
) -> None:
    """Numbers that were never given, negative ones and ranges backwards are ignored."""
    add(spool, clock, 1)
    add(spool, clock, 2)
    batch_of(spool)
    assert spool.settle(receipt(spool.space, contiguous, *beyond)) == 0
    assert spool.status().results == 2


def test_a_receipt_of_a_foreign_space_deletes_nothing(spool: Spool, clock: ManualClock) -> None:
    """Numbers of another boot or file are not ours."""
    add(spool, clock)
    batch_of(spool)
    assert spool.settle(receipt("cccccccccccc-00000000", 1)) == 0
    assert spool.status().results == 1


def test_nonsense_is_told_once(spool: Spool, clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    """A broken controller does not fill the log."""
    add(spool, clock)
    for _ in range(5):
        spool.settle(receipt(spool.space, 10))
    assert len([record for record in caplog.records if "Ignored a receipt" in record.message]) == 1


def test_old_rows_go_first_when_bytes_run_out(path: Path, clock: ManualClock) -> None:
    """Over the ceiling of bytes the oldest go, are counted, and the floor tells the controller."""
    spool = open_spool(path, clock, limits=config.Spool(max_bytes=MIB))
    for number in range(600):
        add(spool, clock, number, values={"text": "x" * 4000})
    status = spool.status()
    assert status.bytes <= MIB + 64 * 1024
    assert status.results + status.dropped_bytes == 600
    assert status.dropped_bytes > 300
    assert batch_of(spool).floor == status.dropped_bytes + 1
    spool.close()
    assert path.stat().st_size < 2 * MIB


def test_a_full_disk_costs_the_oldest(path: Path, clock: ManualClock) -> None:
    """Where the disk misses free space the spool gives back as much as is missing, but keeps the newest MiB."""
    free = [ROOMY]
    limits = config.Spool(min_free_disk_bytes=64 * MIB)
    spool = Spool(path, limits, clock, BOOT_A, free_disk=lambda _: free[0])
    for number in range(800):
        add(spool, clock, number, values={"text": "x" * 4000})
    before = spool.status()
    free[0] = 64 * MIB - 512 * 1024
    for _ in range(3):
        spool.enforce()  # what was dropped once is not dropped again while the disk waits for it
    after = spool.status()
    assert before.bytes - 640 * 1024 <= after.bytes <= before.bytes - 512 * 1024
    assert after.results + after.dropped_disk == 800
    free[0] = 0
    spool.enforce()
    assert MIB - 300 * 1024 <= spool.status().bytes <= MIB
    spool.close()


def test_the_file_gives_space_back(path: Path, clock: ManualClock) -> None:
    """After an outage the file becomes small again, some at each call."""
    spool = open_spool(path, clock)
    for number in range(700):
        add(spool, clock, number, values={"text": "x" * 4000})
    spool.close()
    full_bytes = path.stat().st_size
    spool = open_spool(path, clock)
    while (batch := spool.batch((), 500, 200_000)) is not None:
        spool.settle(receipt(batch.space, batch.entries[-1].sequence))
    for _ in range(10):
        spool.enforce()
    spool.close()
    assert path.stat().st_size < full_bytes / 2


def test_age_within_a_boot_follows_the_boottime_clock(path: Path, clock: ManualClock) -> None:
    """A wall clock that jumps by a year makes nothing old; a day that passes does."""
    spool = open_spool(path, clock, limits=config.Spool(max_age_s=86400.0))
    add(spool, clock)
    clock.wall += 365 * 86400 * 10**9
    spool.enforce()
    assert spool.status().results == 1
    clock.pass_s(86401)
    add(spool, clock)
    spool.enforce()
    status = spool.status()
    assert (status.results, status.dropped_age) == (1, 1)
    spool.close()


def test_status_outlives_the_process(path: Path, clock: ManualClock) -> None:
    """What was dropped stays counted; the oldest start is told."""
    spool = open_spool(path, clock, limits=config.Spool(max_age_s=60.0))
    add(spool, clock)
    clock.pass_s(61)
    spool.enforce()
    spool.close()
    spool = open_spool(path, clock)
    add(spool, clock)
    status = spool.status()
    assert (status.dropped_age, status.results, status.oldest_unix_ns) == (1, 1, clock.wall_ns())
    spool.close()


def test_starts_stay_unique_in_a_series(spool: Spool, clock: ManualClock) -> None:
    """Two results of one series at one instant would overwrite each other in the database."""
    for number in range(3):
        add(spool, clock, number)
    add(spool, clock, 4, link="mobile")
    add(spool, clock, 5, variant={"direction": "upload"})
    starts = [found.start_unix_ns - clock.wall_ns() for found in results_of(batch_of(spool))]
    assert starts == [0, 1, 2, 0, 0]


@pytest.mark.parametrize("running", [True, False])
def test_a_spool_can_be_looked_at(path: Path, clock: ManualClock, *, running: bool) -> None:
    """`outbox` reads the spool beside a running agent and without one, and changes nothing."""
    spool = open_spool(path, clock)
    add(spool, clock, 1)
    spool.begin(draft(clock), Instant.now(clock))
    expected = spool.rows(10)
    if not running:
        spool.close()
    with Spool.inspect(path) as view:
        assert view.rows(10) == expected
        assert view.status().results == 1
        if running:
            add(spool, clock, 2)  # the reader is in nobody's way
            assert view.status().results == 2
    if running:
        spool.close()


def test_looking_at_no_spool_says_so(tmp_path: Path) -> None:
    """A wrong path is an error that says what is missing, and makes no file."""
    with pytest.raises(SpoolError, match="no spool here"):
        Spool.inspect(tmp_path / "absent.db")
    assert list(tmp_path.iterdir()) == []


def test_what_a_later_version_wrote_is_set_aside(path: Path, clock: ManualClock) -> None:
    """After a roll-back the spool may hold what this version cannot read: it blocks neither start nor sending."""
    spool = open_spool(path, clock)
    spool.begin(draft(clock), Instant.now(clock))
    spool._file.execute("UPDATE running SET body = ?", (b'{"task": 1}',))
    spool.close()
    spool = open_spool(path, clock)
    clock.state = UNSYNCHRONISED
    add(spool, clock, 1)
    spool._file.execute("UPDATE results SET body = ?", (b"[]",))
    assert add(spool, clock, 2) == 3
    assert sequences_of(batch_of(spool)) == [3]
    status = spool.status()
    assert [row.sequence for row in spool.rows(10)] == [3]
    spool.close()
    assert (status.results, status.set_aside) == (1, 2)


def test_many_threads_may_use_it(spool: Spool, clock: ManualClock) -> None:
    """Calls from several threads neither fail nor share a number."""
    with ThreadPoolExecutor(4) as threads:
        numbers = list(threads.map(lambda n: add(spool, clock, n), range(80)))
    assert sorted(numbers) == list(range(1, 81))
