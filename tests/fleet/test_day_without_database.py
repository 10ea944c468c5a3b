"""A day without the database costs nothing but delay, within the spool's bounds."""

from __future__ import annotations

from pathlib import Path

import pytest
from real_fleet import Fleet, wait_until

from probe import config
from probe.clock import NS_PER_S, Instant, SystemClock, boot_id
from probe.messages import ClockReading, ClockState, NotRun, NotRunReason, Result
from probe.spool.spool import Spool

DAY_S = 86_400
# Two links, one result each every 15 s: what a probe with a dense schedule completes in a day.
PERIOD_S = 15
LINKS = ("fixed0", "mobile0")
IDLE = """\
  idle:
    period_s: 86400
    actions:
      - {task: host}
"""


class SimulatedClock(SystemClock):
    """Both clocks, moved by hand."""

    def __init__(self, wall_ns: int, boottime_ns: int) -> None:
        self.now = Instant(wall_ns=wall_ns, boottime_ns=boottime_ns)

    def wall_ns(self) -> int:
        """The simulated wall."""
        return self.now.wall_ns

    def boottime_ns(self) -> int:
        """The simulated time since boot."""
        return self.now.boottime_ns

    def reading(self) -> ClockReading:
        """A clock that somebody steers."""
        return ClockReading(state=ClockState.SYNCHRONISED, max_error_s=0.01)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        step = int(seconds * NS_PER_S)
        self.now = Instant(wall_ns=self.now.wall_ns + step, boottime_ns=self.now.boottime_ns + step)


def measured(link: str, start_unix_ns: int) -> Result:
    """One round trip that lost every packet."""
    return Result(
        task="round_trip",
        task_version=1,
        action="stamp",
        schedule="often",
        start_unix_ns=start_unix_ns,
        clock=ClockReading(state=ClockState.SYNCHRONISED, max_error_s=0.01),
        link=link,
        peer="near",
        variant={"method": "stamp", "ip_version": "4"},
        duration_s=3.0,
        values=dict.fromkeys(("packets_received", "packets_duplicated", "packets_reordered", "delays_rejected"), 0)
        | {"packets_sent": 10},
    )


def spend_a_day(path: Path) -> list[int]:
    """Fill a spool as an agent would that gets no receipt for 24 hours; returns the start times."""
    real = SystemClock()
    clock = SimulatedClock(real.wall_ns() - DAY_S * NS_PER_S, real.boottime_ns())
    spool = Spool(path, config.Spool(min_free_disk_bytes=0), clock, boot_id())
    starts = []
    for second in range(0, DAY_S, PERIOD_S):
        for link in LINKS:
            started = Instant.now(clock)
            result = measured(link, started.wall_ns)
            draft = Result(
                **{name: getattr(result, name) for name in ("task", "task_version", "action", "schedule")},
                start_unix_ns=started.wall_ns,
                clock=result.clock,
                link=link,
                not_run=NotRun(reason=NotRunReason.INTERRUPTED),
            )
            spool.finish(spool.begin(draft, started), result)
            starts.append(started.wall_ns)
            clock.advance(0.001)
        if second % 3600 == 0:
            spool.enforce()
        clock.advance(PERIOD_S - len(LINKS) * 0.001)
    status = spool.status()
    spool.close()
    assert (status.dropped_age, status.dropped_bytes, status.dropped_disk) == (0, 0, 0)
    assert status.results == len(starts)
    return starts


@pytest.mark.timeout(240)
def test_a_day_without_the_database_costs_only_delay(tmp_path: Path) -> None:
    """24 hours of results wait in the spool and reach the database with their own times once it is back.

    While the database is away and everything else runs, nothing is receipted, so nothing is deleted; when it comes
    back every result is stored exactly once, at the time it was measured, and the spool is empty.
    """
    fleet = Fleet(tmp_path, ["day-1"])
    try:
        fleet.write(IDLE)
        starts = spend_a_day(fleet.state_dir("day-1") / "spool.db")
        for service in (fleet.broker, fleet.resolver, fleet.peer, fleet.controller):
            service.start()
        fleet.run_controller_command("apply")
        fleet.probes["day-1"].start()
        log = fleet.controller.log_file
        wait_until(
            lambda: "storing was interrupted" in log.read_text(), "the controller noticed that the database is away"
        )
        assert fleet.spool_rows("day-1") == len(starts)
        fleet.influxd.start()
        wait_until(lambda: fleet.spool_rows("day-1") == 0, "the spool is empty", 150)
        rows = fleet.query("SELECT packets_sent, link FROM round_trip")
    finally:
        fleet.stop()
    assert sorted(row["time"] for row in rows) == starts
    assert {row["link"] for row in rows} == set(LINKS)
