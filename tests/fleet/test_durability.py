"""Kill anything, at any time: every result that a probe completed is in the database exactly once."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from real_fleet import Fleet, wait_until

RESULTS_WANTED = 2000
# A measurement that takes most of its slot: a kill is likely to meet it.
LONG = """\
  long:
    period_s: 3
    actions:
      - {task: round_trip, name: stamp, peers: [near], parameters: {packets: 10, interval_s: 0.2}}
"""


def numbered(fleet: Fleet, agent_id: str) -> dict[str, int]:
    """How many results a probe completed, by sequence space: the spool's own counters."""
    with closing(
        sqlite3.connect(f"file:{fleet.state_dir(agent_id)}/spool.db?mode=ro", uri=True, timeout=10)
    ) as connection:
        return dict(connection.execute("SELECT name, next_sequence - 1 FROM spaces").fetchall())


def stored_count(fleet: Fleet) -> int:
    """How many results are in the database."""
    return sum(len(sequences) for sequences in fleet.stored_sequences().values())


@pytest.mark.timeout(420)
def test_every_completed_result_is_stored_exactly_once_whatever_is_killed(fleet: Fleet) -> None:
    """Kill -9 of the controller, the broker with its disk, the database and a probe, each in mid-run.

    The spools number what was completed; the database must hold exactly those numbers, each once, at least 2,000 of
    them, and the receipts must have emptied every spool.
    """
    wait_until(lambda: stored_count(fleet) > 50, "the first results are stored")

    fleet.controller.kill()
    time.sleep(3)
    fleet.controller.start()
    before = stored_count(fleet)
    wait_until(lambda: stored_count(fleet) > before + 100, "results flow after the controller was killed")

    fleet.broker.kill()
    fleet.broker.wipe()
    time.sleep(2)
    fleet.broker.start()
    before = stored_count(fleet)
    wait_until(lambda: stored_count(fleet) > before + 100, "results flow after the broker lost its disk")

    fleet.influxd.kill()
    time.sleep(5)
    fleet.influxd.start()
    before = stored_count(fleet)
    wait_until(lambda: stored_count(fleet) > before + 100, "results flow after the database was killed")

    victim = fleet.probes["durable-2"]
    for _ in range(3):
        victim.kill()
        time.sleep(0.7)
        victim.start()
        time.sleep(2)
    wait_until(lambda: stored_count(fleet) > RESULTS_WANTED, "2,000 results are stored", 240)

    fleet.stop_measuring()
    wait_until(lambda: not any(fleet.spool_rows(agent_id) for agent_id in fleet.agent_ids), "the spools are empty")
    stored = fleet.stored_sequences()
    completed = {
        (agent_id, space): last for agent_id in fleet.agent_ids for space, last in numbered(fleet, agent_id).items()
    }
    assert sum(completed.values()) >= RESULTS_WANTED
    assert stored.keys() == completed.keys()
    for key, last in completed.items():
        assert sorted(stored[key]) == list(range(1, last + 1)), key


@pytest.mark.timeout(180)
def test_a_probe_that_is_killed_in_mid_measurement_says_so(tmp_path: Path) -> None:
    """The row that was open when the power went is delivered as `not_run(interrupted)`."""
    fleet = Fleet(tmp_path, ["cut-1"])
    found = "SELECT not_run_reason, agent_id FROM round_trip WHERE not_run_reason = 'interrupted'"
    try:
        fleet.start(LONG)
        wait_until(lambda: stored_count(fleet) > 2, "the first results are stored")
        for _ in range(20):
            fleet.probes["cut-1"].kill()
            fleet.probes["cut-1"].start()
            time.sleep(3)  # a power cut at any moment of the schedule
            if fleet.query(found):
                break
        rows = fleet.query(found)
    finally:
        fleet.stop()
    assert {row["agent_id"] for row in rows} == {"cut-1"}


@pytest.mark.timeout(180)
def test_a_clean_stop_of_everything_loses_nothing(fleet: Fleet) -> None:
    """SIGTERM in any order, start again: the numbers stored are those completed."""
    wait_until(lambda: stored_count(fleet) > 50, "the first results are stored")
    fleet.controller.stop()
    for probe in fleet.probes.values():
        probe.stop()
    fleet.broker.stop()
    fleet.broker.start()
    for probe in fleet.probes.values():
        probe.start()
    fleet.controller.start()
    fleet.stop_measuring()
    wait_until(lambda: not any(fleet.spool_rows(agent_id) for agent_id in fleet.agent_ids), "the spools are empty")
    stored = fleet.stored_sequences()
    for agent_id in fleet.agent_ids:
        for space, last in numbered(fleet, agent_id).items():
            assert sorted(stored[agent_id, space]) == list(range(1, last + 1))
