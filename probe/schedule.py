"""When to measure: one instant of the agent's own in every slot, on the wall clock, whatever the wall clock does.

A schedule of `period_s` divides UTC into slots that begin at multiples of it since 1970; a slot's index is the
`cycle_number` that the whole fleet shares. Within each slot the agent measures once, at an instant uniform over the
slot (random sampling by RFC 2330 section 11.1, so that nothing periodic in the network hides between samples) that
follows from the agent's id, the schedule, the link and the slot alone: it can be computed again, and no power cut
puts a fleet in step. Continuous tasks have no instants: their windows follow one another (`probe.windows`).
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger

from probe.clock import NS_PER_S, Clock
from probe.messages import Action, LinkName, Schedule
from probe.tasks import TASKS
from probe.windows import Window, WindowChain

_LOG = logging.getLogger(__name__)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NS_PER_US = 1000
_MINUTE_NS = 60 * NS_PER_S
# The whole world's cron jobs run in minute 0. A slot of up to two minutes may have no other minute to go to.
_AVOID_MINUTE_0_ABOVE_NS = 2 * _MINUTE_NS
# Later than this is not that slot's sample any more: half a slot, and for long slots half a minute (a busy host).
_GRACE_NS_MAX = 30 * NS_PER_S
# A frozen host says that it missed slots, but a night of them need not fill the spool.
_MISSED_MAX = 10
# A time source corrects a clock by slewing (500 ppm), or it steps it. Two seconds are no slew.
_STEP_NS = 2 * NS_PER_S
_WATCH_PERIOD_S = 5.0

Key = tuple[str, LinkName | None]


@dataclass(frozen=True, slots=True)
class Due:
    """It is time: one schedule on one link (none for tasks that need none), and which slot it is for.

    Of continuous tasks the slot is the window that begins now; they are due apart from the schedule's others.
    """

    schedule: str
    link: LinkName | None
    cycle_number: int
    slot_start_unix_ns: int
    slot_end_unix_ns: int
    actions: tuple[Action, ...]
    is_continuous: bool = False


@dataclass(frozen=True, slots=True)
class Slots:
    """The slots of one schedule on one link, and the instant within each."""

    agent_id: str
    schedule: str
    link: LinkName | None
    period_ns: int

    def index_at(self, unix_ns: int) -> int:
        """The slot that a moment lies in."""
        return unix_ns // self.period_ns

    def start_unix_ns(self, index: int) -> int:
        """When a slot begins; it ends where the next one begins."""
        return index * self.period_ns

    def instant_unix_ns(self, index: int) -> int:
        """When to measure in a slot, in whole microseconds.

        Never in minute 0 of an hour where slots are longer than two minutes: such a draw is drawn again, which
        leaves the rest of the slot uniform.
        """
        draws = (self.start_unix_ns(index) + self._draw_ns(index, attempt) for attempt in itertools.count())
        return next(
            instant for instant in draws if self.period_ns <= _AVOID_MINUTE_0_ABOVE_NS or not _minute_0(instant)
        )

    def first_after(self, unix_ns: int) -> int:
        """The first slot whose instant is still to come."""
        index = self.index_at(unix_ns)
        return index if self.instant_unix_ns(index) > unix_ns else index + 1

    def phase_ns(self) -> int:
        """The agent's own place within a period, the same in every slot: where windows end and begin."""
        return self._draw_ns("phase", 0)

    def _draw_ns(self, index: int | str, attempt: int) -> int:
        text = f"{self.schedule}\0{self.link or ''}\0{index}\0{attempt}"
        digest = hashlib.blake2b(text.encode(), key=self.agent_id.encode(), digest_size=16).digest()
        # 128 bits over at most 10^13 microseconds: the modulo's bias is far below what anybody could see.
        return int.from_bytes(digest, "big") % (self.period_ns // _NS_PER_US) * _NS_PER_US


def _minute_0(unix_ns: int) -> bool:
    return unix_ns // _MINUTE_NS % 60 == 0


class SlotTrigger(BaseTrigger):  # type: ignore[misc]  # apscheduler 3 ships no types
    """Fires at the instant of each slot. `handled` is the last slot that is done with, fired or given up."""

    def __init__(self, slots: Slots, now_unix_ns: int) -> None:
        self.slots = slots
        # An instant that has passed before we came to be is gone: a restart within a slot must not measure twice.
        self.handled = slots.first_after(now_unix_ns) - 1

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime:  # noqa: ARG002 - APScheduler's signature
        """The next instant after `now` in a slot that is not done with."""
        index = max(self.slots.first_after(_to_unix_ns(now)), self.handled + 1)
        return _to_datetime(self.slots.instant_unix_ns(index))

    def take_passed(self, now_unix_ns: int) -> Sequence[int]:
        """The slots whose instant has passed since the last call, oldest first; they are handled from now on."""
        last = self.slots.first_after(now_unix_ns) - 1
        passed = range(max(self.handled + 1, last + 1 - _MISSED_MAX), last + 1)
        self.handled = max(self.handled, last)
        return passed

    def take_stepped(self, now_unix_ns: int) -> Sequence[int]:
        """After a step of the wall clock: the slot that it jumped into beyond its instant, if any.

        A step back by about a slot repeats none. A longer one has shown that the slots fired before were not the ones
        that they seemed: to wait until the old time comes round again could take years, so counting starts anew.
        """
        last = self.slots.first_after(now_unix_ns) - 1
        current = self.slots.index_at(now_unix_ns)
        if self.handled - current > 1:
            self.handled = last
            return range(0)
        jumped = range(max(self.handled + 1, current), last + 1)
        self.handled = max(self.handled, last)
        return jumped


def _to_unix_ns(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1) * _NS_PER_US


def _to_datetime(unix_ns: int) -> datetime:
    return _EPOCH + timedelta(microseconds=unix_ns // _NS_PER_US)


@dataclass(slots=True)
class _Continuous:
    """The windows of a schedule's continuous tasks on a link."""

    slots: Slots
    chain: WindowChain
    actions: tuple[Action, ...]


@dataclass(slots=True)
class _Line:
    """One job: a schedule on a link."""

    key: Key
    trigger: SlotTrigger
    actions: tuple[Action, ...]

    def due(self, index: int) -> Due:
        slots = self.trigger.slots
        return Due(
            schedule=slots.schedule,
            link=slots.link,
            cycle_number=index,
            slot_start_unix_ns=slots.start_unix_ns(index),
            slot_end_unix_ns=slots.start_unix_ns(index + 1),
            actions=self.actions,
        )

    def is_late(self, index: int, now_unix_ns: int) -> bool:
        slots = self.trigger.slots
        return now_unix_ns - slots.instant_unix_ns(index) > min(slots.period_ns // 2, _GRACE_NS_MAX)


class Scheduler:
    """Says when. `on_due` and `on_missed` are called on the event loop and must return at once.

    Args:
        agent_id: what the instants are derived from.
        clock: the clocks; the wall clock is watched against the boot-time clock.
        on_due: measure now.
        on_missed: the slot's instant passed and nobody was there (a frozen host, a clock that jumped over it).
    """

    def __init__(
        self, agent_id: str, clock: Clock, on_due: Callable[[Due], None], on_missed: Callable[[Due], None]
    ) -> None:
        self._agent_id = agent_id
        self._clock = clock
        self._on_due = on_due
        self._on_missed = on_missed
        self._lines: dict[Key, _Line] = {}
        self._continuous: dict[Key, _Continuous] = {}
        self._offset_ns = self._wall_offset_ns()
        self._watch: asyncio.Task[None] | None = None
        # UTC keeps APScheduler from reading the host's time zone; slots have none.
        self._timer = AsyncIOScheduler(timezone=UTC)

    def start(self) -> None:
        """Begin, on the running event loop."""
        self._timer.start()
        self._watch = asyncio.get_running_loop().create_task(self._watch_clock(), name="watch the wall clock")

    def stop(self) -> None:
        """End. Nothing is due afterwards."""
        self._lines.clear()
        self._replace_chains({})
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
            self._timer.shutdown(wait=False)

    @property
    def keys(self) -> tuple[Key, ...]:
        """What is scheduled: (schedule, link)."""
        return tuple({**self._lines, **self._continuous})

    def replace(self, schedules: Sequence[Schedule], links: Sequence[LinkName]) -> None:
        """Put another set in force. What keeps its period keeps its slots and its place in them."""
        now = self._clock.wall_ns()
        goes_on = {
            (slots.schedule, slots.link): (slots, actions)
            for slots, actions in self._part(schedules, links, continuous=True)
        }
        self._replace_chains(goes_on)
        lines = (
            _Line((slots.schedule, slots.link), SlotTrigger(slots, now), actions)
            for slots, actions in self._part(schedules, links, continuous=False)
        )
        wanted = {line.key: line for line in lines}
        for key in self._lines.keys() - wanted.keys():
            self._timer.remove_job(_job_id(key))
        for key, line in wanted.items():
            before = self._lines.get(key)
            if before is not None and before.trigger.slots == line.trigger.slots:
                line.trigger = before.trigger
            else:
                self._set_job(line)
        self._lines = wanted

    def _part(
        self, schedules: Sequence[Schedule], links: Sequence[LinkName], *, continuous: bool
    ) -> Iterator[tuple[Slots, tuple[Action, ...]]]:
        """What is to be done on each link: by the tasks that go on all the time, or by the others."""
        for schedule in schedules:
            wanted = [action for action in schedule.actions if _is_continuous(action) == continuous]
            of_links = tuple(action for action in wanted if _needs_link(action))
            of_host = tuple(action for action in wanted if not _needs_link(action))
            parts: list[tuple[LinkName | None, tuple[Action, ...]]] = []
            if of_links:
                parts.extend((link, of_links) for link in schedule.links or links)
            if of_host:
                parts.append((None, of_host))
            for link, actions in parts:
                yield Slots(self._agent_id, schedule.name, link, round(schedule.period_s * NS_PER_S)), actions

    def _replace_chains(self, wanted: Mapping[Key, tuple[Slots, tuple[Action, ...]]]) -> None:
        """A chain whose slots stay goes on, by its new actions from the next window on."""
        before = self._continuous
        self._continuous = {}
        for key, (slots, actions) in wanted.items():
            kept = before.pop(key, None)
            if kept is not None and kept.slots == slots:
                kept.actions = actions
                self._continuous[key] = kept
            else:
                self._begin_windows(key, slots, actions)
                if kept is not None:
                    kept.chain.stop()
        for gone in before.values():
            gone.chain.stop()

    def _begin_windows(self, key: Key, slots: Slots, actions: tuple[Action, ...]) -> None:
        chain = WindowChain(self._clock, slots.period_ns, slots.phase_ns(), functools.partial(self._on_window, key))
        self._continuous[key] = _Continuous(slots, chain, actions)
        chain.start()

    def _on_window(self, key: Key, window: Window) -> None:
        schedule, link = key
        actions = self._continuous[key].actions
        bounds = window.start_unix_ns, window.end_unix_ns
        self._tell(self._on_due, Due(schedule, link, window.cycle_number, *bounds, actions, is_continuous=True))

    def _set_job(self, line: _Line) -> None:
        self._timer.add_job(
            self._fire,
            trigger=line.trigger,
            args=[line.key],
            id=_job_id(line.key),
            replace_existing=True,
            misfire_grace_time=None,  # what is late is told apart below, where the clock's steps are known
            coalesce=True,
        )

    async def _fire(self, key: Key) -> None:
        """What APScheduler runs at an instant. A coroutine, or it would be run in a thread."""
        if self._clock_stepped():
            return
        line = self._lines.get(key)
        if line is None:
            return
        now = self._clock.wall_ns()
        for index in line.trigger.take_passed(now):
            self._tell(self._on_missed if line.is_late(index, now) else self._on_due, line.due(index))

    def _tell(self, callback: Callable[[Due], None], due: Due) -> None:
        try:
            callback(due)
        except Exception:  # noqa: BLE001 - logged with its traceback; the next ones must go on
            _LOG.exception("Schedule %s on %s was not started", due.schedule, due.link)

    async def _watch_clock(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_PERIOD_S)
            self._clock_stepped()

    def _clock_stepped(self) -> bool:
        """Notice a step of the wall clock, and then place every job anew: no stall, no burst."""
        offset = self._wall_offset_ns()
        moved = offset - self._offset_ns
        self._offset_ns = offset
        if abs(moved) <= _STEP_NS:
            return False
        _LOG.info("The wall clock was stepped by %.3f s: all schedules were placed anew", moved / NS_PER_S)
        now = self._clock.wall_ns()
        for line in tuple(self._lines.values()):
            for index in line.trigger.take_stepped(now):
                self._tell(self._on_missed, line.due(index))
            self._set_job(line)
        return True

    def _wall_offset_ns(self) -> int:
        return self._clock.wall_ns() - self._clock.boottime_ns()


def _needs_link(action: Action) -> bool:
    """An unknown task is told about on every link: most tasks measure one."""
    task = TASKS.get(action.task)
    return task is None or task.needs_link


def _is_continuous(action: Action) -> bool:
    task = TASKS.get(action.task)
    return task is not None and task.continuous


def _job_id(key: Key) -> str:
    return f"{key[0]}\0{key[1] or ''}"
