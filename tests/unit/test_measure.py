"""What becomes of a measurement: each way that it can end, with planted tasks and an outbox in memory."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from planted_measurer import Behaviour, MeasurerRig, PlantedValues, receive_ten

from probe.errors import MeasurementFailedError, NotRunError
from probe.measure.invocation import Invocation
from probe.messages import Action, Failure, FailureKind, NotRun, NotRunReason, Operation, Result
from probe.tasks.base import Context, Load


@pytest.fixture
def rig(tmp_path: Path) -> MeasurerRig:
    """A measurer whose task `planted` receives ten packets."""
    made = MeasurerRig(tmp_path)
    made.plant(receive_ten)
    return made


async def test_values_are_a_full_result(rig: MeasurerRig) -> None:
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


async def test_progress_is_for_what_somebody_waits_for(rig: MeasurerRig, monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setattr("probe.measure.execution._TELL_AFTER_S", 0.01)

    async def take_long(context: Context) -> Any:
        while len(rig.progress) < 5:  # noqa: ASYNC110 - a list has no event
            await asyncio.sleep(0)
        return await receive_ten(context)

    rig.plant(take_long)
    await rig.run()
    assert [(one.state, one.outcome) for one in rig.progress] == told * 3


async def test_the_row_comes_before_the_test(rig: MeasurerRig) -> None:
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
    rig: MeasurerRig, behaviour: Behaviour, reason: NotRunReason, detail: str
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


async def test_a_crash_is_logged_with_its_traceback(rig: MeasurerRig, caplog: pytest.LogCaptureFixture) -> None:
    """A fault of the program is an ERROR for a person; a failed measurement is not."""
    rig.plant(crash)
    await rig.run()
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "no such key" in caplog.text
    caplog.clear()
    rig.plant(fail)
    await rig.run()
    assert not [record for record in caplog.records if record.levelname != "DEBUG"]


async def test_a_failure_is_data(rig: MeasurerRig) -> None:
    """When the network says no, that is the result: operation and kind."""
    rig.plant(fail)
    result = await rig.run()
    assert result.failure == Failure(operation=Operation.CONNECT, kind=FailureKind.REFUSED, detail="port 80")
    assert result.not_run is None


async def test_an_overdue_task_is_ended(rig: MeasurerRig) -> None:
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
    rig: MeasurerRig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
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


async def test_a_stop_records_what_it_interrupts(rig: MeasurerRig) -> None:
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


async def test_a_broken_outbox_is_told_once(rig: MeasurerRig, caplog: pytest.LogCaptureFixture) -> None:
    """When the spool takes nothing, measuring goes on; the loss and its end are each logged once."""
    rig.outbox.broken = True
    for _ in range(3):
        await rig.measurer.run(rig.invocation())
    rig.outbox.broken = False
    assert (await rig.run()).values is not None
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
