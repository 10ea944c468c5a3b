"""The agent: joins the stages, follows the instruction in force, and says how it is.

    schedule ─► measure ─► spool ─► publish

Without a controller it goes on by the last instruction that it was given; without a broker it goes on measuring.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import logging
import os
import random
import signal
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from probe import __version__, systemd
from probe.clock import NS_PER_S, Clock, Instant, SystemClock, boot_id
from probe.config import ProbeConfig
from probe.errors import ConfigError, SpoolError
from probe.exclusion import HeavyLock
from probe.instruction import COMMAND_SCHEDULE, InstructionError, InstructionFile, parse
from probe.links import Link
from probe.measure import Instructed, Invocation, Measurer
from probe.messages import (
    SCHEMA_VERSION,
    AgentState,
    Command,
    Instruction,
    LinkName,
    NotRunReason,
    Result,
    SpoolStatus,
    Status,
)
from probe.publish import Publisher
from probe.schedule import Due, Scheduler
from probe.spool import Spool
from probe.targets import TargetGuard
from probe.tasks import TASKS

_LOG = logging.getLogger(__name__)
T = TypeVar("T")
# A stop is done within 5 s: running measurements get the first part, the goodbye to the broker the second.
_STOP_MEASURING_S = 2.5
_STOP_PUBLISHING_S = 2.0
# Ids of commands that were run: a broker delivers at least once. More than a session's queue holds for one agent.
_COMMANDS_REMEMBERED = 256
# On-demand measurements at a time; a person asks for one or two.
_COMMANDS_RUNNING_MAX = 16
# A command without a near end does not keep a heavy measurement waiting for ever.
_COMMAND_WAIT_S_MAX = 600.0
# Every periodic job has a spread, so that a fleet that was powered up together does not report together.
_SPREAD_RATIO = 0.1


def run(config: ProbeConfig) -> None:
    """Be the agent until SIGTERM or SIGINT.

    Raises:
        ConfigError: the state folder cannot be used, or another agent uses it.
        SpoolError: the spool can neither be opened nor replaced.
    """
    lock = _lock_state(Path(config.state_dir))
    try:
        asyncio.run(_run(config))
    finally:
        os.close(lock)


async def _run(config: ProbeConfig) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    agent = Agent(config, SystemClock())
    await agent.start()
    systemd.notify("READY=1")
    # What is there now stays: the collector need not look at it again, nor touch its memory.
    gc.collect()
    gc.freeze()
    await stopping.wait()
    systemd.notify("STOPPING=1")
    await agent.stop()


def _lock_state(state_dir: Path) -> int:
    """Make the state folder and hold it: two agents with one spool would be two probes with one name."""
    try:
        state_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
        descriptor = os.open(state_dir / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise ConfigError("state_dir", f"{state_dir} cannot be used: {error.strerror}", "name another folder") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError("state_dir", f"another agent runs on {state_dir}", "stop it first") from None
    return descriptor


class SpoolThread:
    """The spool for the event loop: every call goes through one thread, in order, so that no fsync stops the clock.

    `stored` is called after each result that can be sent.
    """

    def __init__(self, spool: Spool, stored: Callable[[], None]) -> None:
        self._spool = spool
        self._stored = stored
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spool")

    async def begin(self, draft: Result, started: Instant) -> int:
        """As `Spool.begin`."""
        return await self.call(self._spool.begin, draft, started)

    async def finish(self, row: int, result: Result) -> int:
        """As `Spool.finish`."""
        sequence = await self.call(self._spool.finish, row, result)
        self._stored()
        return sequence

    async def add(self, result: Result, started: Instant) -> int:
        """As `Spool.add`."""
        sequence = await self.call(self._spool.add, result, started)
        self._stored()
        return sequence

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run anything that touches the disk."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def close(self) -> None:
        """Close the spool, after what waits for it."""
        await self.call(self._spool.close)
        self._thread.shutdown(wait=False)


class Agent:
    """One running agent."""

    def __init__(self, config: ProbeConfig, clock: Clock) -> None:
        state_dir = Path(config.state_dir)
        self._config = config
        self._clock = clock
        self._boot_id = boot_id()
        self._started_unix_ns = clock.wall_ns()
        self._links = {link.name: Link(link) for link in config.links}
        spool = Spool(state_dir / "spool.db", config.spool, clock, self._boot_id)
        self._publisher = Publisher(
            config.broker, config.agent_id, spool, self._on_instruction, self._on_command, self._status, clock
        )
        self._spool = spool
        self._outbox = SpoolThread(spool, self._publisher.notify)
        self._measurer = Measurer(
            agent_id=config.agent_id,
            clock=clock,
            links=self._links,
            outbox=self._outbox,
            guard=_guard(config),
            heavy=HeavyLock(state_dir / "heavy.lock"),
            on_progress=self._publisher.publish_progress,
        )
        self._scheduler = Scheduler(config.agent_id, clock, self._on_due, self._on_missed)
        self._file = InstructionFile(state_dir, config.agent_id)
        self._instruction: Instruction | None = None
        self._problem: str | None = None
        self._spool_status: SpoolStatus | None = None
        self._commands = _Remembered(_COMMANDS_REMEMBERED)
        self._commands_running = 0
        self._running: set[asyncio.Task[None]] = set()
        self._periodic: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Measure by the instruction kept on disk, and connect."""
        kept = self._file.load()
        if kept is not None:
            self._put_in_force(kept)
        self._scheduler.start()
        await self._keep_house()
        await self._publisher.start()
        self._periodic.append(asyncio.create_task(self._keep_house_periodically(), name="house"))
        watchdog_s = systemd.watchdog_period_s()
        if watchdog_s is not None:
            self._periodic.append(asyncio.create_task(self._feed_watchdog(watchdog_s), name="watchdog"))
        _LOG.info("Agent %s %s started with %d links", self._config.agent_id, __version__, len(self._links))

    async def stop(self) -> None:
        """End within 5 s: what is being measured is recorded as interrupted, and the broker is told goodbye."""
        self._scheduler.stop()
        for task in (*self._periodic, *self._running):
            task.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=_STOP_MEASURING_S)
        try:
            async with asyncio.timeout(_STOP_PUBLISHING_S):
                await self._publisher.stop()
        except TimeoutError:
            _LOG.info("The broker did not take the goodbye in time")
        await self._outbox.close()
        _LOG.info("Agent %s stopped", self._config.agent_id)

    # What the stages report

    def _on_due(self, due: Due) -> None:
        self._spawn(self._measurer.run(self._invocation(due)))

    def _on_missed(self, due: Due) -> None:
        self._spawn(self._measurer.skip(self._invocation(due), NotRunReason.MISSED, "nobody was there in time"))

    def _invocation(self, due: Due) -> Invocation:
        left_s = (due.slot_end_unix_ns - self._clock.wall_ns()) / NS_PER_S
        return Invocation(
            schedule=due.schedule,
            link=due.link,
            actions=due.actions,
            deadline_s=self._clock.monotonic_s() + left_s,
            cycle_number=due.cycle_number,
        )

    def _on_instruction(self, payload: bytes) -> None:
        """Follow a retained instruction, or stay with the one in force and say why."""
        if not payload:
            _LOG.info("The retained instruction was cleared: the one in force stays")
            return
        try:
            instruction = parse(payload, self._config.agent_id)
        except InstructionError as error:
            self._problem = str(error)
            _LOG.warning("An instruction was refused, the one before stays in force: %s", error)
            self._spawn(self._tell_status())
            return
        if instruction != self._instruction:
            self._put_in_force(instruction)
            self._spawn(self._keep_instruction(payload))
        elif self._problem != _doubts(instruction, self._links.keys()):
            self._problem = _doubts(instruction, self._links.keys())
            self._spawn(self._tell_status())

    def _put_in_force(self, instruction: Instruction) -> None:
        self._instruction = instruction
        self._problem = _doubts(instruction, self._links.keys())
        peers = {peer.name: peer for peer in instruction.peers}
        self._measurer.instructed = Instructed(peers=peers, suppressions=instruction.suppressions)
        self._scheduler.replace(instruction.schedules, tuple(self._links))
        self._measurer.forget_counters_except(self._scheduler.keys)
        _LOG.info(
            "Instruction %s came into force: %d schedules", instruction.revision[:12], len(instruction.schedules)
        )

    async def _keep_instruction(self, payload: bytes) -> None:
        try:
            await self._outbox.call(self._file.save, payload)
        except OSError as error:
            self._problem = f"it is in force and could not be kept on disk: {error.strerror}"
            _LOG.error("The instruction could not be kept on disk: %s", error)  # noqa: TRY400 - a full disk has no traceback worth reading
        await self._tell_status()

    def _on_command(self, payload: bytes) -> None:
        """Run one on-demand action, once, while it is still wanted."""
        try:
            command = msgspec.json.decode(payload, type=Command)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            _LOG.warning("A command was refused: %s", error)
            return
        left_s = (command.expires_unix_ns - self._clock.wall_ns()) / NS_PER_S
        if command.schema_version > SCHEMA_VERSION or left_s <= 0:
            _LOG.info("Command %s was left alone: it has expired, or is of a later version", command.command_id)
        elif not self._commands.is_new(command.command_id):
            _LOG.info("Command %s came again and was left alone", command.command_id)
        else:
            self._spawn(self._run_command(command, min(left_s, _COMMAND_WAIT_S_MAX)))

    async def _run_command(self, command: Command, wait_s: float) -> None:
        task = TASKS.get(command.action.task)
        links: tuple[LinkName | None, ...] = command.links or tuple(self._links)
        if task is not None and not task.needs_link:
            links = (None,)
        for link in links:
            invocation = Invocation(
                schedule=COMMAND_SCHEDULE,
                link=link,
                actions=(command.action,),
                deadline_s=self._clock.monotonic_s() + wait_s,
                command_id=command.command_id,
            )
            if self._commands_running >= _COMMANDS_RUNNING_MAX:
                await self._measurer.skip(invocation, NotRunReason.OVERLAP, "too many commands at a time")
                continue
            self._commands_running += 1
            try:
                await self._measurer.run(invocation)
            finally:
                self._commands_running -= 1

    # What the agent says of itself

    def _status(self, state: AgentState) -> Status:
        return Status(
            agent_id=self._config.agent_id,
            state=state,
            reported_unix_ns=self._clock.wall_ns(),
            agent_version=__version__,
            boot_id=self._boot_id,
            started_unix_ns=self._started_unix_ns,
            instruction_revision=self._instruction.revision if self._instruction is not None else None,
            instruction_problem=self._problem,
            clock=self._clock.reading(),
            spool=self._spool_status,
            schedules=self._measurer.schedule_statuses(),
            links=tuple(link.status() for link in self._links.values()),
        )

    async def _tell_status(self) -> None:
        await self._keep_house()
        self._publisher.publish_status()

    async def _keep_house(self) -> None:
        """Keep the spool's ceilings, and know how full it is."""
        try:
            await self._outbox.call(self._spool.enforce)
            self._spool_status = await self._outbox.call(self._spool.status)
        except SpoolError as error:
            _LOG.debug("The spool could not be kept: %s", error)

    async def _keep_house_periodically(self) -> None:
        period_s = self._config.status_period_s
        while True:
            await asyncio.sleep(period_s * random.uniform(1 - _SPREAD_RATIO, 1 + _SPREAD_RATIO))  # noqa: S311 - no secret
            await self._tell_status()

    async def _feed_watchdog(self, period_s: float) -> None:
        """Say that we live, only while the loop turns and the publisher's thread does."""
        while True:
            if self._publisher.alive:
                systemd.notify("WATCHDOG=1")
            await asyncio.sleep(period_s)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the rest; it ends with the agent at the latest."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("Something of the agent crashed: this is a fault of the program", exc_info=error)


class _Remembered:
    """The last ids that were seen, a bounded number of them."""

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._ids: OrderedDict[str, None] = OrderedDict()

    def is_new(self, identifier: str) -> bool:
        """Whether it was not seen before; from now on it was."""
        if identifier in self._ids:
            return False
        self._ids[identifier] = None
        if len(self._ids) > self._count_max:
            self._ids.popitem(last=False)
        return True


def _guard(config: ProbeConfig) -> TargetGuard:
    guard = TargetGuard(config.targets)
    if guard.allows_nothing:
        _LOG.warning("targets is empty: nothing with a peer will be measured until this device's file names some")
    return guard


def _doubts(instruction: Instruction, links: Any) -> str | None:
    """What of an instruction in force cannot be done here; each such action says so in its results too."""
    doubts = {
        f"unknown task {action.task!r} in schedule {schedule.name}"
        for schedule in instruction.schedules
        for action in schedule.actions
        if action.task not in TASKS
    }
    doubts |= {
        f"unknown link {link!r} in schedule {schedule.name}"
        for schedule in instruction.schedules
        for link in schedule.links
        if link not in links
    }
    return "; ".join(sorted(doubts)[:5]) or None
