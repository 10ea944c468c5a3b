"""What becomes of an invocation: each way that a measurement can end, with planted tasks and an outbox in memory."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from probe.clock import Instant, SystemClock
from probe.config import LinkConfig, Targets
from probe.errors import MeasurementFailedError, NotRunError, SpoolError
from probe.links import Link
from probe.measure.exclusion import HeavyLock
from probe.measure.measurer import Instructed, Invocation, Measurer
from probe.measure.targets import TargetGuard
from probe.messages import (
    Action,
    Failure,
    FailureKind,
    NotRun,
    NotRunReason,
    Operation,
    Peer,
    Progress,
    Result,
    ScheduleStatus,
    Suppression,
)
from probe.tasks.base import AnyTask, Context, Load, Parameters, TaskType, Values

Behaviour = Callable[[Context], Awaitable[Any]]


class PlantedParameters(Parameters, frozen=True):
    """One that makes a variant and one that does not."""

    direction: Literal["download", "upload"] = "download"
    packets: int = 10


class PlantedValues(Values, frozen=True):
    """Something measured."""

    packets_received: int
    delay_s: float | None = None


class MemoryOutbox:
    """Remembers what was stored, in order."""

    def __init__(self) -> None:
        self.begun: dict[int, Result] = {}
        self.stored: list[Result] = []
        self.broken = False
        self._rows = itertools.count(1)

    async def begin(self, draft: Result, started: Instant) -> int:
        """As measure.Outbox."""
        self._work()
        assert draft.start_unix_ns == started.wall_ns
        row = next(self._rows)
        self.begun[row] = draft
        return row

    async def finish(self, row: int, result: Result) -> int:
        """As measure.Outbox."""
        self._work()
        assert self.begun.pop(row).start_unix_ns == result.start_unix_ns
        self.stored.append(result)
        return len(self.stored)

    async def add(self, result: Result, started: Instant) -> int:
        """As measure.Outbox."""
        self._work()
        assert result.start_unix_ns == started.wall_ns
        self.stored.append(result)
        return len(self.stored)

    def _work(self) -> None:
        if self.broken:
            raise SpoolError("the disk is gone")


class Rig:
    """A measurer of planted tasks."""

    def __init__(self, folder: Path) -> None:
        self.clock = SystemClock()
        self.outbox = MemoryOutbox()
        self.progress: list[Progress] = []
        self.tasks: dict[str, AnyTask] = {}
        names = {"fixed0": "lo", "twin0": "lo", "gone0": "absent0"}
        self.measurer = Measurer(
            agent_id="hanoi-1",
            clock=self.clock,
            links={name: Link(LinkConfig(name=name, interface=interface)) for name, interface in names.items()},
            outbox=self.outbox,
            guard=TargetGuard(Targets(networks=("192.0.2.0/24",))),
            heavy=HeavyLock(folder / "heavy.lock"),
            on_progress=self.progress.append,
            tasks=self.tasks,
        )
        peers = {"near": Peer(name="near", host="192.0.2.1"), "evil": Peer(name="evil", host="203.0.113.1")}
        self.measurer.instructed = Instructed(peers=peers)

    def plant(self, behaviour: Behaviour, name: str = "planted", *, time_out_s: float = 5.0, **fields: Any) -> None:
        """Add a task to the registry that does this."""

        async def measure(context: Context, parameters: PlantedParameters) -> Any:
            assert isinstance(parameters, PlantedParameters)
            return await behaviour(context)

        settings: dict[str, Any] = {"load": Load.LIGHT, "needs_peer": False, **fields}
        self.tasks[name] = TaskType(
            name=name,
            version=3,
            parameters=PlantedParameters,
            values=PlantedValues,
            measure=measure,
            time_out_s=lambda _: time_out_s,
            **settings,
        )

    def invocation(
        self, *actions: Action, link: str | None = "fixed0", wait_s: float = 5.0, schedule: str = "often"
    ) -> Invocation:
        """One with the action `planted` unless others are given."""
        return Invocation(
            schedule=schedule,
            link=link,
            actions=actions or (Action(name="a", task="planted"),),
            deadline_s=self.clock.monotonic_s() + wait_s,
            cycle_number=7,
        )

    async def run(self, *actions: Action, **fields: Any) -> Result:
        """Run one invocation; the result stored last."""
        await self.measurer.run(self.invocation(*actions, **fields))
        return self.outbox.stored[-1]

    def counters(self) -> ScheduleStatus:
        """Those of the one schedule."""
        (counters,) = self.measurer.schedule_statuses()
        return counters


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """A measurer whose task `planted` receives ten packets."""
    made = Rig(tmp_path)
    made.plant(receive_ten)
    return made


async def receive_ten(context: Context) -> PlantedValues:
    """Measure well."""
    context.usage.sent_bytes, context.usage.received_bytes = 640, 320
    return PlantedValues(packets_received=10, delay_s=0.5)


async def test_values_are_a_full_result(rig: Rig) -> None:
    """A measurement that gives values is stored with all that the contract says of it."""
    result = await rig.run(Action(name="down", task="planted", peers=("near",), parameters={"direction": "upload"}))
    assert result.values == {"packets_received": 10, "delay_s": 0.5}
    assert (result.task, result.task_version, result.action, result.schedule) == ("planted", 3, "down", "often")
    assert (result.link, result.peer, result.cycle_number) == ("fixed0", "near", 7)
    assert result.variant == {"direction": "upload"}
    assert (result.bytes_sent, result.bytes_received) == (640, 320)
    assert result.duration_s is not None
    assert result.duration_s >= 0
    assert not rig.outbox.begun


async def test_progress_is_for_what_somebody_waits_for(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heavy, commanded and long measurements are told about; a light one on schedule would cost more than it says."""
    await rig.run()
    assert rig.progress == []
    told = [("started", None), ("finished", "values")]
    command = Invocation("command", "fixed0", (Action(name="a", task="planted"),), deadline_s=0, command_id="c1")
    await rig.measurer.run(command)
    assert [(one.state, one.outcome) for one in rig.progress] == told
    rig.plant(receive_ten, "heavy", load=Load.HEAVY)
    await rig.run(Action(name="h", task="heavy"))
    assert [(one.state, one.outcome) for one in rig.progress] == told * 2
    monkeypatch.setattr("probe.measure.measurer._TELL_AFTER_S", 0.01)

    async def take_long(context: Context) -> Any:
        while len(rig.progress) < 5:  # noqa: ASYNC110 - a list has no event
            await asyncio.sleep(0)
        return await receive_ten(context)

    rig.plant(take_long)
    await rig.run()
    assert [(one.state, one.outcome) for one in rig.progress] == told * 3


async def test_the_row_comes_before_the_test(rig: Rig) -> None:
    """While a task runs, what is true if the power fails now is stored already: interrupted."""
    seen: list[Result] = []

    async def look(context: Context) -> PlantedValues:
        seen.extend(rig.outbox.begun.values())
        return await receive_ten(context)

    rig.plant(look)
    await rig.run()
    (draft,) = seen
    assert draft.not_run is not None
    assert draft.not_run.reason is NotRunReason.INTERRUPTED
    assert draft.values is None


async def fail(_: Context) -> Any:
    """Be told no by the network."""
    raise MeasurementFailedError(Operation.CONNECT, FailureKind.REFUSED, "port 80")


async def miss_tool(_: Context) -> Any:
    """Lack a tool."""
    raise NotRunError(NotRunReason.TOOL_MISSING, "iperf3")


async def crash(_: Context) -> Any:
    """Have a fault."""
    return dict[str, int]()["no such key"]


async def time_out_within(_: Context) -> Any:
    """Leak a time-out of one's own."""
    raise TimeoutError


async def cancel_itself(_: Context) -> Any:
    """End as nobody asked."""
    raise asyncio.CancelledError


async def give_nan(_: Context) -> Any:
    """Give a figure that is none."""
    return PlantedValues(packets_received=1, delay_s=float("nan"))


async def give_infinity(_: Context) -> Any:
    """Give a figure that is none."""
    return PlantedValues(packets_received=1, delay_s=float("-inf"))


async def give_nothing(_: Context) -> Any:
    """Forget to measure."""


async def give_too_much(_: Context) -> Any:
    """Give what fits into no report."""
    return PlantedValues(packets_received=10**200_000)


@pytest.mark.parametrize(
    ("behaviour", "reason", "detail"),
    [
        (miss_tool, NotRunReason.TOOL_MISSING, "iperf3"),
        (crash, NotRunReason.TASK_CRASHED, "KeyError: 'no such key'"),
        (time_out_within, NotRunReason.TASK_CRASHED, "TimeoutError"),
        (cancel_itself, NotRunReason.TASK_CRASHED, "cancelled itself"),
        (give_nan, NotRunReason.TASK_CRASHED, "values.delay_s is nan"),
        (give_infinity, NotRunReason.TASK_CRASHED, "values.delay_s is -inf"),
        (give_nothing, NotRunReason.TASK_CRASHED, "measured NoneType, not PlantedValues"),
        (give_too_much, NotRunReason.TASK_CRASHED, ""),
    ],
)
async def test_what_is_no_measurement_is_not_run(
    rig: Rig, behaviour: Behaviour, reason: NotRunReason, detail: str
) -> None:
    """Whatever else a task does becomes `not_run` with its reason, and the next measurement is made."""
    rig.plant(behaviour)
    result = await rig.run()
    assert result.not_run is not None
    assert result.not_run.reason is reason
    assert detail in result.not_run.detail
    assert rig.counters().failures == 1
    rig.plant(receive_ten)
    assert (await rig.run()).values is not None


async def test_a_crash_is_logged_with_its_traceback(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """A fault of the program is an ERROR for a person; a failed measurement is not."""
    rig.plant(crash)
    await rig.run()
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "no such key" in caplog.text
    caplog.clear()
    rig.plant(fail)
    await rig.run()
    assert not [record for record in caplog.records if record.levelname != "DEBUG"]


async def test_a_failure_is_data(rig: Rig) -> None:
    """When the network says no, that is the result: operation and kind."""
    rig.plant(fail)
    result = await rig.run()
    assert result.failure == Failure(operation=Operation.CONNECT, kind=FailureKind.REFUSED, detail="port 80")
    assert result.not_run is None


async def test_an_overdue_task_is_ended(rig: Rig) -> None:
    """A task that takes longer than it said is cancelled; what it cost so far is kept."""
    ended = asyncio.Event()

    async def hang(context: Context) -> Any:
        context.usage.sent_bytes = 99
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    rig.plant(hang, time_out_s=0.05)
    result = await rig.run()
    assert result.not_run == NotRun(reason=NotRunReason.TASK_TIMED_OUT, detail="not done after 0.05 s")
    assert result.bytes_sent == 99
    assert ended.is_set()


async def test_a_task_that_cannot_be_ended_is_left_behind(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A task that swallows its cancellation blocks nobody: it is reported and left behind."""
    monkeypatch.setattr("probe.measure.outcome._UNWIND_S", 0.05)
    release = asyncio.Event()

    async def refuse_to_end(context: Context) -> Any:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return await receive_ten(context)

    rig.plant(refuse_to_end, time_out_s=0.05)
    result = await rig.run()
    assert result.not_run is not None
    assert result.not_run.reason is NotRunReason.TASK_TIMED_OUT
    assert "cannot be ended" in caplog.text
    release.set()


async def test_a_stop_records_what_it_interrupts(rig: Rig) -> None:
    """A cancelled invocation stores the running action and those that were to follow as interrupted."""
    started = asyncio.Event()

    async def hang(context: Context) -> Any:
        context.usage.sent_bytes = 5
        started.set()
        await asyncio.Event().wait()

    rig.plant(hang)
    running = asyncio.create_task(
        rig.measurer.run(rig.invocation(*(Action(name=name, task="planted") for name in "abc")))
    )
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [(one.action, one.not_run.reason if one.not_run else None) for one in rig.outbox.stored] == [
        (name, NotRunReason.INTERRUPTED) for name in "abc"
    ]
    assert rig.outbox.stored[0].bytes_sent == 5
    assert not rig.outbox.begun


@pytest.mark.parametrize(
    ("action", "link", "reason", "detail"),
    [
        (Action(name="a", task="no_such"), "fixed0", NotRunReason.UNKNOWN_TASK, "no task 'no_such'"),
        (Action(name="a", task="planted"), "mobile9", NotRunReason.UNKNOWN_LINK, "no link 'mobile9'"),
        (Action(name="a", task="planted"), None, NotRunReason.UNKNOWN_LINK, "was given none"),
        (Action(name="a", task="planted"), "gone0", NotRunReason.LINK_DOWN, "absent0 is absent or down"),
        (Action(name="a", task="planted", peers=("far",)), "fixed0", NotRunReason.UNKNOWN_PEER, "no peer 'far'"),
        (Action(name="a", task="needy"), "fixed0", NotRunReason.UNKNOWN_PEER, "the action names none"),
        (Action(name="a", task="planted", peers=("evil",)), "fixed0", NotRunReason.TARGET_REFUSED, "203.0.113.1"),
        (
            Action(name="a", task="planted", parameters={"packet": 1}),
            "fixed0",
            NotRunReason.BAD_PARAMETERS,
            "unknown field `packet`",
        ),
        (
            Action(name="a", task="planted", parameters={"packets": "10"}),
            "fixed0",
            NotRunReason.BAD_PARAMETERS,
            "Expected `int`, got `str`",
        ),
        (
            Action(name="a", task="planted", parameters={"direction": "sideways"}),
            "fixed0",
            NotRunReason.BAD_PARAMETERS,
            "sideways",
        ),
    ],
)
async def test_what_cannot_be_measured_says_why(
    rig: Rig, action: Action, link: str | None, reason: NotRunReason, detail: str
) -> None:
    """An action that must not or cannot be made is stored with the reason, and no task is called."""

    async def never(_: Context) -> Any:
        pytest.fail("the task was called")

    rig.plant(never)
    rig.plant(never, "needy", needs_peer=True)
    result = await rig.run(action, link=link)
    assert result.not_run is not None
    assert result.not_run.reason is reason
    assert detail in result.not_run.detail
    assert rig.progress == []


async def test_a_host_in_the_parameters_is_a_target_too(rig: Rig) -> None:
    """Whom the parameters name must be within the device's targets, like a peer."""
    rig.plant(receive_ten, "ask", targets=lambda parameters: ("203.0.113.9",) if parameters.packets == 1 else ())
    result = await rig.run(Action(name="a", task="ask", parameters={"packets": 1}))
    assert result.not_run is not None
    assert result.not_run.reason is NotRunReason.TARGET_REFUSED
    assert (await rig.run(Action(name="a", task="ask"))).values is not None


async def test_a_lock_that_cannot_be_opened_is_told(rig: Rig, tmp_path: Path) -> None:
    """When the device's lock cannot be held, a heavy task is not run and says why; light ones go on."""
    rig.plant(receive_ten, "heavy", load=Load.HEAVY)
    (tmp_path / "heavy.lock").mkdir()
    result = await rig.run(Action(name="h", task="heavy"))
    assert result.not_run is not None
    assert result.not_run.reason is NotRunReason.NO_SLOT
    assert "heavy.lock cannot be held" in result.not_run.detail
    assert (await rig.run()).values is not None


async def test_each_peer_in_turn(rig: Rig) -> None:
    """An action is measured with each of its peers in order, and one that is refused stops none."""
    await rig.run(Action(name="a", task="planted", peers=("near", "evil", "near")))
    assert [one.peer for one in rig.outbox.stored] == ["near", "evil", "near"]
    assert [one.values is not None for one in rig.outbox.stored] == [True, False, True]


async def test_an_invocation_that_still_runs_is_an_overlap(rig: Rig) -> None:
    """The next slot of a schedule on a link that is not done is not run; on another link it is."""
    release, started = asyncio.Event(), asyncio.Event()

    async def wait(context: Context) -> Any:
        started.set()
        await release.wait()
        return await receive_ten(context)

    rig.plant(wait)
    first = asyncio.create_task(rig.measurer.run(rig.invocation()))
    await started.wait()
    result = await rig.run()
    assert result.not_run is not None
    assert result.not_run.reason is NotRunReason.OVERLAP
    release.set()
    assert (await rig.run(link="twin0")).values is not None
    await first
    statuses = {status.link: status for status in rig.measurer.schedule_statuses()}
    assert (statuses["fixed0"].invocations, statuses["fixed0"].overlaps) == (1, 1)
    assert (statuses["twin0"].invocations, statuses["twin0"].overlaps) == (1, 0)


async def test_a_suppressed_schedule_is_not_run(rig: Rig) -> None:
    """A suppression that holds stops a schedule, says its name, and is counted apart."""
    rig.measurer.instructed = Instructed(suppressions=(Suppression(name="tet"),))
    result = await rig.run()
    assert result.not_run == NotRun(reason=NotRunReason.SUPPRESSED, detail="tet")
    assert (rig.counters().suppressions, rig.counters().invocations) == (1, 0)


async def test_starts_are_unique(rig: Rig) -> None:
    """No two results of a process start in the same nanosecond, even when the clock stands still."""
    rig.measurer._clock = Standing()
    await asyncio.gather(*(rig.measurer.run(rig.invocation(link=link)) for link in ("fixed0", "twin0", "gone0")))
    starts = [one.start_unix_ns for one in rig.outbox.stored]
    assert len(set(starts)) == 3
    assert max(starts) - min(starts) == 2


class Standing(SystemClock):
    """A wall clock that stands still."""

    def wall_ns(self) -> int:
        """As probe.clock.Clock."""
        return 1_790_000_000_000_000_000


async def test_heavy_tasks_exclude_each_other(rig: Rig) -> None:
    """Of heavy tasks on two links one waits for the other; a light one does not wait."""
    running, most = 0, 0

    async def load(context: Context) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return await receive_ten(context)

    rig.plant(load, "heavy", load=Load.HEAVY)
    heavy = Action(name="h", task="heavy")
    await asyncio.gather(*(rig.measurer.run(rig.invocation(heavy, link=link)) for link in ("fixed0", "twin0")))
    assert most == 1
    assert [one.values is not None for one in rig.outbox.stored] == [True, True]


async def test_a_heavy_task_waits_until_its_slot_ends(rig: Rig, tmp_path: Path) -> None:
    """While another process holds the device, a heavy task is not run, and a light one is."""
    rig.plant(receive_ten, "heavy", load=Load.HEAVY)
    with await HeavyLock(tmp_path / "heavy.lock").acquire(1.0):
        result = await rig.run(Action(name="h", task="heavy"), wait_s=0.2)
        assert result.not_run is not None
        assert result.not_run.reason is NotRunReason.NO_SLOT
        assert (await rig.run()).values is not None
    assert (await rig.run(Action(name="h", task="heavy"))).values is not None


async def test_own_load_is_told(rig: Rig) -> None:
    """Results that shared an interface with a heavy task say so: begun before it, or during it; the heavy one not."""
    before_runs, heavy_runs, release = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def begin_before(context: Context) -> Any:
        before_runs.set()
        await release.wait()
        return await receive_ten(context)

    async def load(context: Context) -> Any:
        heavy_runs.set()
        await release.wait()
        return await receive_ten(context)

    rig.plant(begin_before, "before")
    rig.plant(load, "heavy", load=Load.HEAVY)
    running = [asyncio.create_task(rig.measurer.run(rig.invocation(Action(name="b", task="before"))))]
    await before_runs.wait()
    running.append(asyncio.create_task(rig.measurer.run(rig.invocation(Action(name="h", task="heavy"), link="twin0"))))
    await heavy_runs.wait()
    during = await rig.run(Action(name="d", task="planted"), link="twin0", schedule="other")
    release.set()
    await asyncio.gather(*running)
    after = await rig.run(Action(name="e", task="planted"))
    loads = {one.action: one.fitness.own_load for one in rig.outbox.stored}
    assert during.fitness.own_load
    assert not after.fitness.own_load
    assert loads == {"b": True, "d": True, "h": False, "e": False}


async def test_a_broken_outbox_is_told_once(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """When the spool takes nothing, measuring goes on; the loss and its end are each logged once."""
    rig.outbox.broken = True
    for _ in range(3):
        await rig.measurer.run(rig.invocation())
    rig.outbox.broken = False
    assert (await rig.run()).values is not None
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


async def test_counters_of_old_schedules_are_dropped(rig: Rig) -> None:
    """Counters follow the schedules in force; those of commands stay."""
    await rig.run()
    command = Invocation(
        schedule="command", link="fixed0", actions=(Action(name="a", task="planted"),), deadline_s=0, command_id="c1"
    )
    await rig.measurer.run(command)
    assert rig.outbox.stored[-1].command_id == "c1"
    rig.measurer.forget_counters_except([("other", "fixed0")])
    assert [status.schedule for status in rig.measurer.schedule_statuses()] == ["command"]


def window_of(rig: Rig, *actions: Action, window_s: float = 0.2) -> Invocation:
    """One window of a continuous task."""
    return replace(rig.invocation(*actions, wait_s=window_s), is_continuous=True)


async def test_a_window_is_told_how_long_to_go_on(rig: Rig) -> None:
    """Until the next window begins, with its own time on top to come to an end."""

    async def go_on(context: Context) -> PlantedValues:
        assert context.window_s is not None
        assert context.start_boottime_ns is not None
        assert 0 < context.window_s <= 0.2
        assert 5 < context.time_out_s <= 5.2
        return PlantedValues(packets_received=1)

    rig.plant(go_on, continuous=True)
    await rig.measurer.run(window_of(rig))
    assert rig.outbox.stored[-1].values == {"packets_received": 1}


async def test_a_command_watches_for_a_while(rig: Rig) -> None:
    """Where no window follows, it lasts half a minute, whatever the command's own patience is."""

    async def go_on(context: Context) -> PlantedValues:
        assert context.window_s == pytest.approx(30, abs=0.1)
        assert context.memory == {}
        context.memory["left"] = True
        return PlantedValues(packets_received=1)

    rig.plant(go_on, continuous=True)
    for _ in range(2):
        result = await rig.run(schedule="command", wait_s=0.1)
        assert result.values is not None, result.not_run


async def test_windows_remember(rig: Rig) -> None:
    """What one leaves the next one of the same series finds, and nobody else; until its schedule is gone."""
    found: list[int] = []

    async def count(context: Context) -> PlantedValues:
        found.append(context.memory.get("count", 0))
        context.memory["count"] = found[-1] + 1
        return PlantedValues(packets_received=1)

    rig.plant(count, continuous=True)
    await rig.measurer.run(window_of(rig))
    await rig.measurer.run(window_of(rig))
    await rig.measurer.run(window_of(rig, Action(name="b", task="planted")))
    rig.measurer.forget_counters_except([])
    await rig.measurer.run(window_of(rig))
    assert found == [0, 1, 0, 0]


async def test_actions_go_on_side_by_side(rig: Rig) -> None:
    """Two windows of one invocation need no longer than one; a third still running is an overlap."""
    both, wait = asyncio.Barrier(2), asyncio.Event()

    async def meet(_: Context) -> PlantedValues:
        await both.wait()
        await wait.wait()
        return PlantedValues(packets_received=1)

    rig.plant(meet, continuous=True)
    invocation = window_of(rig, Action(name="a", task="planted"), Action(name="b", task="planted"))
    running = [asyncio.create_task(rig.measurer.run(invocation)) for _ in range(3)]
    await asyncio.sleep(0.05)
    await rig.measurer.run(invocation)
    overlaps = [result.not_run for result in rig.outbox.stored]
    assert [one.reason for one in overlaps if one is not None] == [NotRunReason.OVERLAP] * 2
    wait.set()
    await asyncio.gather(*running)
    assert len(rig.outbox.stored) == 2 + 6


async def test_a_stop_keeps_what_was_seen(rig: Rig) -> None:
    """The agent is stopped in mid-window: its values are those of the time until then; without any, the draft."""
    started = asyncio.Event()

    async def go_on(context: Context) -> PlantedValues:
        if context.link is not None and context.link.name == "fixed0":
            context.interim.values = lambda: PlantedValues(packets_received=7)
        started.set()
        await asyncio.sleep(60)
        raise AssertionError

    rig.plant(go_on, continuous=True)
    for link in ("fixed0", "twin0"):
        started.clear()
        task = asyncio.create_task(rig.measurer.run(replace(window_of(rig, window_s=60), link=link)))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    seen, unseen = rig.outbox.stored
    assert seen.values == {"packets_received": 7}
    assert seen.not_run is None
    assert seen.duration_s is not None
    assert unseen.not_run is not None
    assert unseen.not_run.reason is NotRunReason.INTERRUPTED


async def test_a_link_that_is_down_is_what_it_measures(rig: Rig) -> None:
    """A task that needs no carrier is given the link all the same."""
    rig.plant(receive_ten, needs_link_up=False, continuous=True)
    await rig.measurer.run(replace(window_of(rig), link="gone0"))
    assert rig.outbox.stored[-1].values is not None
