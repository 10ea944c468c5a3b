"""What came of one measurement: whatever a task does, it ends in time and as one of the words of the contract."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Mapping
from typing import Any

import msgspec

from probe.errors import MeasurementFailedError, NotRunError, one_line
from probe.messages import REPORT_BYTES_MAX, NotRun, NotRunReason
from probe.tasks.base import AnyTask, Context, Parameters, Values

_LOG = logging.getLogger(__name__)
# How long an ended task may take to close its sockets before it is left behind; a stop has 5 s for everything.
_UNWIND_S = 2.0
# A result must fit into a report with room for what surrounds it.
_VALUES_BYTES_MAX = REPORT_BYTES_MAX * 3 // 4


async def outcome_of(task: AnyTask, context: Context, parameters: Parameters) -> dict[str, Any]:
    """Measure once, for `context.time_out_s` at most: the one of `values`, `failure` and `not_run` that came of it."""
    try:
        values = await _finish_within(task.measure(context, parameters), context.time_out_s, task.name)
        return {"values": _plain(values, task.values)}
    except MeasurementFailedError as error:
        _LOG.debug("Failed %s: %s", task.name, error)
        return {"failure": error.failure}
    except NotRunError as error:
        return {"not_run": error.not_run}
    except _OverdueError:
        seen = interim_of(task, context)
        if seen is not None:
            return {"values": seen}
        return {
            "not_run": NotRun(reason=NotRunReason.TASK_TIMED_OUT, detail=f"not done after {context.time_out_s:g} s")
        }
    except Exception as error:  # noqa: BLE001 - logged with its traceback; a fault of a task is a result too
        _LOG.exception("Task %s crashed: this is a fault of the program", task.name)
        detail = one_line(f"{type(error).__name__}: {error}")
        return {"not_run": NotRun(reason=NotRunReason.TASK_CRASHED, detail=detail)}


def interim_of(task: AnyTask, context: Context) -> dict[str, Any] | None:
    """The values that are true of a measurement which is ended before its time; absent where it has none to give."""
    if context.interim.values is None:
        return None
    try:
        seen = context.interim.values()
        return None if seen is None else _plain(seen, task.values)
    except Exception:  # noqa: BLE001 - logged with its traceback; the draft says that it was interrupted
        _LOG.exception("Task %s could not say what it had seen: this is a fault of the program", task.name)
        return None


class _OverdueError(Exception):
    """A task took longer than it said that it can."""


async def _finish_within(measuring: Awaitable[Values], time_out_s: float, name: str) -> Values:
    """Await a task for so long. One that is overdue, or whose caller is cancelled, is ended, or left behind."""
    task = asyncio.ensure_future(measuring)
    try:
        await asyncio.wait({task}, timeout=time_out_s)
        if not task.done():
            raise _OverdueError
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=_UNWIND_S)
            task.add_done_callback(_take_exception)
            if not task.done():
                _LOG.error("Task %s cannot be ended: it goes on beside the others", name)
    if task.cancelled():
        raise RuntimeError("the task cancelled itself")
    return task.result()


def _take_exception(task: asyncio.Future[Values]) -> None:
    """What an ended task still had to say is of no use to anybody."""
    if not task.cancelled():
        task.exception()


def _plain(values: Values, wanted: type[Values]) -> dict[str, Any]:
    """Values as they travel.

    Raises:
        TypeError: they are not the task's.
        ValueError: they have a NaN or an infinity, or are too long for a report.
    """
    if not isinstance(values, wanted):
        raise TypeError(f"measured {type(values).__name__}, not {wanted.__name__}")
    plain: dict[str, Any] = msgspec.to_builtins(values)
    _check_finite(plain, "values")
    size = len(msgspec.json.encode(plain))
    if size > _VALUES_BYTES_MAX:
        raise ValueError(f"values of {size} bytes fit into no report")
    return plain


def _check_finite(part: Any, place: str) -> None:
    if isinstance(part, float) and not math.isfinite(part):
        raise ValueError(f"{place} is {part}: an absent figure is None")
    if isinstance(part, Mapping):
        for name, inner in part.items():
            _check_finite(inner, f"{place}.{name}")
    elif isinstance(part, list | tuple):
        for index, inner in enumerate(part):
            _check_finite(inner, f"{place}[{index}]")
