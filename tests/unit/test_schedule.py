"""Slots and their instants; the scheduler under clocks that step."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from probe.clock import NS_PER_S, SystemClock
from probe.messages import Action, ClockReading, ClockState, Schedule
from probe.schedule import Due, Key, Scheduler, Slots, SlotTrigger

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
HOUR_NS = 3600 * NS_PER_S
NOW_NS = 1_790_000_000 * NS_PER_S
PERIODS = st.integers(1, 7 * 86400).map(lambda seconds: seconds * NS_PER_S)


@dataclass
class HandClock:
    """A clock that stands still until it is moved."""

    wall: int = NOW_NS
    boot: int = 1000 * NS_PER_S

    def wall_ns(self) -> int:
        """As probe.clock.Clock."""
        return self.wall

    def boottime_ns(self) -> int:
        """As probe.clock.Clock."""
        return self.boot

    def monotonic_s(self) -> float:
        """As probe.clock.Clock."""
        return self.boot / NS_PER_S

    def reading(self) -> ClockReading:
        """As probe.clock.Clock."""
        return ClockReading(state=ClockState.UNSYNCHRONISED)

    def pass_s(self, seconds: float) -> None:
        """Let real time pass."""
        self.wall += round(seconds * NS_PER_S)
        self.boot += round(seconds * NS_PER_S)

    def step_s(self, seconds: float) -> None:
        """Step the wall clock alone."""
        self.wall += round(seconds * NS_PER_S)


def slots(period_s: float, agent_id: str = "hanoi-1", schedule: str = "often", link: str | None = "fixed0") -> Slots:
    """Slots of a schedule on a link."""
    return Slots(agent_id, schedule, link, round(period_s * NS_PER_S))


def to_datetime(unix_ns: int) -> datetime:
    """A moment as APScheduler has it."""
    return EPOCH + timedelta(microseconds=unix_ns // 1000)


@given(period_ns=PERIODS, index=st.integers(0, 10**7))
@example(period_ns=121 * NS_PER_S, index=0)
@example(period_ns=HOUR_NS, index=497_222)
def test_each_slot_has_one_instant_inside_it(period_ns: int, index: int) -> None:
    """The instant lies in its slot, in whole microseconds, and is the same whoever computes it."""
    ours, theirs = Slots("hanoi-1", "a", "l", period_ns), Slots("hanoi-1", "a", "l", period_ns)
    instant = ours.instant_unix_ns(index)
    assert index * period_ns <= instant < (index + 1) * period_ns
    assert instant % 1000 == 0
    assert ours.index_at(instant) == index
    assert instant == theirs.instant_unix_ns(index)


@given(period_ns=PERIODS.filter(lambda period: period > 120 * NS_PER_S), index=st.integers(0, 10**6))
@example(period_ns=121 * NS_PER_S, index=0)
def test_long_slots_avoid_minute_0(period_ns: int, index: int) -> None:
    """In slots longer than two minutes nothing happens in minute 0 of any hour, when the world's cron jobs run."""
    instant = Slots("hanoi-1", "a", "l", period_ns).instant_unix_ns(index)
    assert instant // (60 * NS_PER_S) % 60 != 0


def test_short_slots_use_every_minute() -> None:
    """A slot that may lie within minute 0 still has its instant."""
    every_minute = slots(60)
    hour = NOW_NS // HOUR_NS * 60
    assert {every_minute.instant_unix_ns(hour + minute) // (60 * NS_PER_S) % 60 for minute in range(60)} == set(
        range(60)
    )


def test_instants_are_uniform_over_the_slot() -> None:
    """Over 5000 slots each tenth of the slot gets a tenth of the instants, within 5 standard deviations."""
    counts = [0] * 10
    for index in range(5000):
        offset = slots(10).instant_unix_ns(index) - index * 10 * NS_PER_S
        counts[offset // NS_PER_S] += 1
    # Binomial(5000, 0.1): a standard deviation of 21.2.
    assert all(abs(count - 500) < 106 for count in counts)


def test_agents_schedules_and_links_are_not_in_step() -> None:
    """The instant differs between agents, schedules, links and the host's own job."""
    variants = [
        slots(3600),
        slots(3600, agent_id="hanoi-2"),
        slots(3600, schedule="seldom"),
        slots(3600, link="mobile0"),
        slots(3600, link=None),
    ]
    assert len({variant.instant_unix_ns(497_222) for variant in variants}) == len(variants)


@given(period_ns=PERIODS, wait_ns=st.integers(0, 10 * 86400 * NS_PER_S))
def test_the_trigger_fires_once_in_every_slot(period_ns: int, wait_ns: int) -> None:
    """From any moment on, each fire time is the instant of the slot after that of the one before."""
    own = Slots("hanoi-1", "a", "l", period_ns)
    trigger = SlotTrigger(own, NOW_NS + wait_ns)
    start = to_datetime(NOW_NS + wait_ns)
    at = trigger.get_next_fire_time(None, start)
    first = trigger.handled + 1
    assert at > start
    assert first - own.index_at(NOW_NS + wait_ns) in {0, 1}
    for expected in range(first, first + 5):
        assert at == EPOCH + timedelta(microseconds=own.instant_unix_ns(expected) // 1000)
        assert list(trigger.take_passed(own.instant_unix_ns(expected))) == [expected]
        at = trigger.get_next_fire_time(at, at)


def test_a_restart_within_a_slot_does_not_repeat_it() -> None:
    """When the instant of the slot has passed before the start, the slot is left alone."""
    own = slots(10)
    index = own.index_at(NOW_NS)
    late = SlotTrigger(own, own.instant_unix_ns(index) + 1)
    assert late.handled == index
    assert not late.take_passed((index + 1) * 10 * NS_PER_S - 1)
    early = SlotTrigger(own, own.instant_unix_ns(index) - 1)
    assert list(early.take_passed((index + 1) * 10 * NS_PER_S - 1)) == [index]


class Rig:
    """A scheduler whose time is moved by hand; its jobs are fired by hand as APScheduler would."""

    def __init__(self) -> None:
        self.clock = HandClock()
        self.due: list[Due] = []
        self.missed: list[Due] = []
        self.scheduler = Scheduler("hanoi-1", self.clock, self.due.append, self.missed.append)

    async def fire(self, key: Key = ("often", "fixed0")) -> None:
        """Fire a job."""
        await self.scheduler._fire(key)

    def instant_ns(self, offset: int, period_s: float = 10) -> int:
        """The instant of the slot `offset` slots from now."""
        own = slots(period_s)
        return own.instant_unix_ns(own.index_at(self.clock.wall) + offset)

    def go_to(self, unix_ns: int) -> None:
        """Let real time pass until then."""
        self.clock.pass_s((unix_ns - self.clock.wall) / NS_PER_S)

    def next_run_s(self, link: str = "fixed0") -> float:
        """Seconds from now until APScheduler is to fire the job."""
        job = self.scheduler._timer.get_job(f"often\0{link}")
        fire_time = job.trigger.get_next_fire_time(None, datetime.fromtimestamp(self.clock.wall / NS_PER_S, UTC))
        return float(fire_time.timestamp() - self.clock.wall / NS_PER_S)

    @property
    def cycles(self) -> list[int]:
        """What was due so far."""
        return [due.cycle_number for due in self.due]


def schedule(period_s: float = 10, name: str = "often", task: str = "planted", links: tuple[str, ...] = ()) -> Schedule:
    """A schedule of one action."""
    return Schedule(name=name, period_s=period_s, actions=(Action(name="a", task=task),), links=links)


@pytest.fixture
def rig() -> Rig:
    """A scheduler with one job of ten seconds."""
    made = Rig()
    made.scheduler.replace([schedule()], ["fixed0"])
    return made


async def test_a_due_slot_says_which_it_is(rig: Rig) -> None:
    """What is due carries its cycle number, its slot's bounds and its actions."""
    rig.go_to(rig.instant_ns(1))
    await rig.fire()
    due = rig.due[-1]
    assert due.cycle_number == rig.clock.wall // (10 * NS_PER_S)
    assert due.slot_start_unix_ns == due.cycle_number * 10 * NS_PER_S
    assert due.slot_end_unix_ns == due.slot_start_unix_ns + 10 * NS_PER_S
    assert (due.schedule, due.link, due.actions[0].task) == ("often", "fixed0", "planted")


async def test_a_frozen_host_says_what_it_missed(rig: Rig) -> None:
    """After a minute of silence the slots that passed are missed, at most the one at hand is due, none is both."""
    rig.go_to(rig.instant_ns(1))
    await rig.fire()
    rig.due.clear()
    rig.missed.clear()
    rig.go_to(rig.instant_ns(6) + 100)
    await rig.fire()
    told = [due.cycle_number for due in rig.missed] + rig.cycles
    assert rig.cycles[-1] == rig.clock.wall // (10 * NS_PER_S)
    assert len(told) == len(set(told)) == 6
    assert len(rig.cycles) <= 2


async def test_a_night_of_silence_is_told_briefly(rig: Rig) -> None:
    """However long the host was frozen, a job tells about ten slots at most."""
    rig.clock.pass_s(8 * 3600)
    await rig.fire()
    assert len(rig.missed) + len(rig.due) <= 10


async def test_a_short_step_back_repeats_no_slot(rig: Rig) -> None:
    """The clock goes back over an instant that was fired: it comes by again and nothing happens."""
    rig.go_to(rig.instant_ns(1))
    await rig.fire()
    rig.clock.step_s(-5)
    rig.scheduler._clock_stepped()
    fired = rig.cycles
    assert rig.next_run_s() < 25
    rig.clock.pass_s(5)
    await rig.fire()
    assert rig.cycles == fired
    rig.go_to(slots(10).instant_unix_ns(fired[-1] + 1))
    await rig.fire()
    assert rig.cycles == [*fired, fired[-1] + 1]


@pytest.mark.parametrize("back_s", [25.0, 3600.0, 86400.0 * 365 * 50])
async def test_a_long_step_back_stalls_nothing(rig: Rig, back_s: float) -> None:
    """However far the clock goes back, the next measurement is at most two slots away."""
    rig.go_to(rig.instant_ns(1))
    await rig.fire()
    rig.clock.step_s(-back_s)
    rig.scheduler._clock_stepped()
    assert rig.next_run_s() <= 20
    rig.clock.pass_s(rig.next_run_s() + 0.001)
    await rig.fire()
    assert rig.cycles[-1] == rig.clock.wall // (10 * NS_PER_S)
    assert len(rig.cycles) == 2


@pytest.mark.parametrize("forward_s", [2.5, 25.0, 3600.0, 86400.0 * 365 * 50])
async def test_a_step_forward_fires_no_burst(rig: Rig, forward_s: float) -> None:
    """However far the clock goes on, nothing is due at once, and only the slot jumped into may be missed."""
    rig.go_to(rig.instant_ns(1))
    await rig.fire()
    rig.due.clear()
    rig.missed.clear()
    rig.clock.step_s(forward_s)
    await rig.fire()  # APScheduler's timer finds the job long overdue
    assert rig.due == []
    assert len(rig.missed) <= 1
    assert 0 < rig.next_run_s() <= 20


async def test_a_slewed_clock_is_no_step(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """A clock that is steered by 500 ppm for an hour is never taken for one that was stepped."""
    with caplog.at_level("INFO", logger="probe.schedule"):
        for _ in range(720):
            rig.clock.pass_s(5)
            rig.clock.step_s(5 * 500e-6)
            rig.scheduler._clock_stepped()
    assert caplog.records == []


async def test_replace_keeps_what_did_not_change(rig: Rig) -> None:
    """A slot that was fired is not fired again because another schedule came, or its actions changed."""
    rig.go_to(rig.instant_ns(1))
    await rig.fire()
    fired = rig.cycles
    rig.scheduler.replace([schedule(task="other"), schedule(name="more")], ["fixed0"])
    await rig.fire()
    assert rig.cycles == fired
    rig.go_to(rig.instant_ns(1))
    await rig.fire()
    assert rig.due[-1].actions[0].task == "other"


async def test_replace_drops_and_adds(rig: Rig) -> None:
    """The set in force is exactly the one given last: by schedule and link, the host's own tasks apart."""
    assert rig.scheduler.keys == (("often", "fixed0"),)
    both = Schedule(
        name="both", period_s=30, actions=(Action(name="h", task="planted_host"), Action(name="x", task="no_such"))
    )
    rig.scheduler.replace([both, schedule(links=("mobile0",))], ["fixed0", "mobile0"])
    assert set(rig.scheduler.keys) == {("both", "fixed0"), ("both", "mobile0"), ("often", "mobile0")}
    rig.scheduler.replace([], ["fixed0"])
    assert not rig.scheduler.keys
    assert rig.scheduler._timer.get_jobs() == []
    rig.clock.pass_s(60)
    await rig.fire()
    assert rig.due == []


async def test_a_callback_that_fails_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """What is due next is told even when telling what was due now raised."""
    rig = Rig()

    def refuse(due: Due) -> None:
        raise RuntimeError(f"no to {due.cycle_number}")

    rig.scheduler._on_due = refuse
    rig.scheduler.replace([schedule()], ["fixed0"])
    rig.go_to(rig.instant_ns(1))
    await rig.fire()
    assert "was not started" in caplog.text
    rig.scheduler._on_due = rig.due.append
    rig.go_to(rig.instant_ns(1))
    await rig.fire()
    assert len(rig.due) == 1


async def test_the_real_timer_fires_every_second() -> None:
    """On the real clock and the real APScheduler, a one-second schedule fires in consecutive cycles."""
    due: asyncio.Queue[Due] = asyncio.Queue()
    missed: list[Due] = []
    scheduler = Scheduler("hanoi-1", SystemClock(), due.put_nowait, missed.append)
    scheduler.start()
    scheduler.replace([schedule(period_s=1)], ["fixed0"])
    try:
        cycles = [(await asyncio.wait_for(due.get(), 20)).cycle_number for _ in range(3)]
    finally:
        scheduler.stop()
    assert sorted({*cycles, *(one.cycle_number for one in missed)})[:3] == list(range(cycles[0], cycles[0] + 3))
