"""Windows follow one another, whatever the wall clock does."""

from __future__ import annotations

import asyncio
import itertools
import time

from hypothesis import example, given
from hypothesis import strategies as st

from probe.clock import NS_PER_S, SystemClock
from probe.messages import Action, Schedule
from probe.schedule import Due, Scheduler
from probe.tasks.availability import TASK
from probe.windows import Window, WindowChain, window_from

MINUTE_NS = 60 * NS_PER_S
NOW_NS = 1_790_000_000 * NS_PER_S
TIME_OUT_S = 10.0


class SteppedClock(SystemClock):
    """The host's clocks, but for a wall clock that a test steps."""

    def __init__(self) -> None:
        self.stepped_ns = 0

    def wall_ns(self) -> int:
        """As probe.clock.Clock."""
        return time.time_ns() + self.stepped_ns


@given(
    start_ns=st.integers(0, 4_000_000_000 * NS_PER_S),
    period_ns=st.integers(1, 3600).map(lambda seconds: seconds * NS_PER_S),
    phase_ns=st.integers(0, 3600 * NS_PER_S),
)
@example(start_ns=NOW_NS, period_ns=MINUTE_NS, phase_ns=NOW_NS % MINUTE_NS)
def test_a_window_ends_at_a_bound(start_ns: int, period_ns: int, phase_ns: int) -> None:
    """It begins now, ends where a slot of the agent's phase does, and lasts half a period to one and a half."""
    window = window_from(start_ns, period_ns, phase_ns)
    assert window.start_unix_ns == start_ns
    assert (window.end_unix_ns - phase_ns) % period_ns == 0
    assert period_ns / 2 <= window.end_unix_ns - start_ns <= period_ns * 3 / 2
    assert window_from(window.end_unix_ns, period_ns, phase_ns).cycle_number == window.cycle_number + 1


@given(early_ns=st.integers(-NS_PER_S, NS_PER_S))
def test_a_timer_that_wakes_early_or_late_keeps_the_count(early_ns: int) -> None:
    """The window after this one has the next number, however badly the host keeps its time."""
    window = window_from(NOW_NS, MINUTE_NS, 7)
    following = window_from(window.end_unix_ns - early_ns, MINUTE_NS, 7)
    assert following.cycle_number == window.cycle_number + 1
    assert following.end_unix_ns == window.end_unix_ns + MINUTE_NS


async def test_steps_of_the_wall_clock_leave_no_gap() -> None:
    """The clock jumps by an hour and back while windows go on: each begins when the one before has lasted its time."""
    clock, begun = SteppedClock(), asyncio.Queue[tuple[float, Window]]()
    chain = WindowChain(clock, NS_PER_S // 5, 12345, lambda window: begun.put_nowait((clock.monotonic_s(), window)))
    chain.start()
    windows: list[tuple[float, Window]] = []
    async with asyncio.timeout(TIME_OUT_S):
        for stepped_s in (0, 3600, -3600, 0.13, 0):
            clock.stepped_ns = round(stepped_s * NS_PER_S)
            windows.append(await begun.get())
    chain.stop()
    for (began_s, window), (next_s, _) in itertools.pairwise(windows):
        assert -0.001 < next_s - began_s - window.length_s < 0.1
        assert 0.1 <= window.length_s <= 0.3001


def test_agents_are_not_in_step() -> None:
    """Each has its own bounds, the same after every start."""
    clock = SystemClock()
    action = Action(name="a", task=TASK.name, peers=("near",))
    schedule = Schedule(name="watch", period_s=60, actions=(action,))

    async def bounds_of(agent_id: str) -> tuple[int, int]:
        scheduler = Scheduler(agent_id, clock, lambda _: None, lambda _: None)
        scheduler.replace([schedule], ["fixed0"])
        bounds = scheduler._continuous["watch", "fixed0"].chain.bounds
        scheduler.replace([], [])
        return bounds

    ids = ["hanoi-1", "hanoi-2", "hanoi-1"]
    one, two, again = (asyncio.run(bounds_of(agent_id)) for agent_id in ids)
    assert one == again != two
    assert one[0] == MINUTE_NS


async def test_a_schedule_may_have_both_kinds() -> None:
    """Its continuous tasks begin at once and side by side, its others wait for their instant."""
    due: list[Due] = []
    scheduler = Scheduler("hanoi-1", SystemClock(), due.append, lambda _: None)
    watch = Action(name="watch", task=TASK.name, peers=("near", "far"))
    schedule = Schedule(name="both", period_s=3600, actions=(watch, Action(name="host", task="host")))
    scheduler.replace([schedule], ["fixed0", "mobile0"])
    await asyncio.sleep(0)
    assert [(one.link, one.actions, one.is_continuous) for one in due] == [
        ("fixed0", (watch,), True),
        ("mobile0", (watch,), True),
    ]
    assert set(scheduler.keys) == {("both", "fixed0"), ("both", "mobile0"), ("both", None)}
    scheduler.stop()
    assert scheduler.keys == ()


async def test_what_keeps_its_period_goes_on() -> None:
    """A new instruction begins no second window beside the one that goes on; its actions count from the next one on."""
    due: list[Due] = []
    scheduler = Scheduler("hanoi-1", SystemClock(), due.append, lambda _: None)

    async def replace(period_s: float, peer: str) -> None:
        action = Action(name="watch", task=TASK.name, peers=(peer,))
        scheduler.replace([Schedule(name="watch", period_s=period_s, actions=(action,))], ["fixed0"])
        await asyncio.sleep(0.01)

    await replace(60, "near")
    await replace(60, "far")
    assert [one.actions[0].peers for one in due] == [("near",)]
    chain = scheduler._continuous["watch", "fixed0"]
    assert chain.actions[0].peers == ("far",)
    await replace(30, "far")
    assert [one.actions[0].peers for one in due] == [("near",), ("far",)]
    scheduler.stop()
