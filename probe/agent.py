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
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from probe import __version__, systemd
from probe.clock import NS_PER_S, Clock, SystemClock, boot_id
from probe.config import ProbeConfig
from probe.errors import ConfigError, SpoolError
from probe.instruction import InstructionFile
from probe.links import Link
from probe.measure.exclusion import HeavyLock
from probe.measure.invocation import Invocation
from probe.measure.measurer import Measurer
from probe.measure.targets import TargetGuard
from probe.messages import AgentState, NotRunReason, Progress, Result, SpoolStatus, Status
from probe.orders import Orders
from probe.publish.publisher import Publisher
from probe.publish.window import Pace
from probe.schedule import Due, Scheduler
from probe.spool.spool import Spool
from probe.spool.thread import SpoolThread

_LOG = logging.getLogger(__name__)
# A stop is done within 5 s: running measurements get the first part, the goodbye to the broker the second.
_STOP_MEASURING_S = 2.5
_STOP_PUBLISHING_S = 2.0
# A report, its acknowledgement and its receipt cost the probe more than a measurement: results that come close
# together travel together. What a person has asked for by a command leaves at once.
_GATHER_S = 5.0
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


class Agent:
    """One running agent."""

    def __init__(self, config: ProbeConfig, clock: Clock) -> None:
        state_dir = Path(config.state_dir)
        self._config = config
        self._clock = clock
        self._boot_id = boot_id()
        self._started_unix_ns = clock.wall_ns()
        self._links = {link.name: Link(link) for link in config.links}
        self._spool = Spool(state_dir / "spool.db", config.spool, clock, self._boot_id)
        self._outbox = SpoolThread(self._spool, self._on_stored)
        self._scheduler = Scheduler(config.agent_id, clock, self._on_due, self._on_missed)
        self._measurer = Measurer(
            agent_id=config.agent_id,
            clock=clock,
            links=self._links,
            outbox=self._outbox,
            guard=_guard(config),
            heavy=HeavyLock(state_dir / "heavy.lock"),
            on_progress=self._on_progress,
            stamp_keys=config.stamp_keys,
            peer_ca_file=config.peer_tls.ca_file,
        )
        self._orders = Orders(
            agent_id=config.agent_id,
            clock=clock,
            links=self._links.keys(),
            measurer=self._measurer,
            scheduler=self._scheduler,
            disk=self._outbox,
            file=InstructionFile(state_dir, config.agent_id),
            spawn=self._spawn,
            tell_status=self._tell_status,
        )
        self._ways_out: list[str | None] = [None]
        self._publisher = Publisher(
            config.broker,
            config.agent_id,
            self._spool,
            self._orders.take_instruction,
            self._orders.take_command,
            self._status,
            clock,
            self._ways_out,
            executor=self._outbox.executor,
            pace=Pace(stop_s=_STOP_PUBLISHING_S / 2),
        )
        self._spool_status: SpoolStatus | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._notifying: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Measure by the instruction kept on disk, and connect."""
        await self._keep_house()
        await self._publisher.start()
        self._orders.take_kept_instruction()
        self._scheduler.start()
        self._spawn(self._keep_house_periodically())
        watchdog_s = systemd.watchdog_period_s()
        if watchdog_s is not None:
            self._spawn(self._feed_watchdog(watchdog_s))
        _LOG.info("Agent %s %s started with %d links", self._config.agent_id, __version__, len(self._links))

    async def stop(self) -> None:
        """End within 5 s: what is being measured is recorded as interrupted, and the broker is told goodbye."""
        self._scheduler.stop()
        for task in self._running:
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

    def _on_stored(self, result: Result) -> None:
        if result.command_id is not None:
            self._publisher.notify()
        elif self._notifying is None:
            self._notifying = asyncio.get_running_loop().call_later(_GATHER_S, self._notify)

    def _notify(self) -> None:
        self._notifying = None
        self._publisher.notify()

    def _on_progress(self, progress: Progress) -> None:
        self._publisher.publish_progress(progress)

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
            is_continuous=due.is_continuous,
        )

    # What the agent says of itself

    def _status(self, state: AgentState) -> Status:
        instruction = self._orders.instruction
        return Status(
            agent_id=self._config.agent_id,
            state=state,
            reported_unix_ns=self._clock.wall_ns(),
            agent_version=__version__,
            boot_id=self._boot_id,
            started_unix_ns=self._started_unix_ns,
            instruction_revision=instruction.revision if instruction is not None else None,
            instruction_problem=self._orders.problem,
            clock=self._clock.reading(),
            spool=self._spool_status,
            schedules=self._measurer.schedule_statuses(),
            links=tuple(link.status() for link in self._links.values()),
        )

    async def _tell_status(self) -> None:
        await self._keep_house()
        self._publisher.publish_status()

    async def _keep_house(self) -> None:
        """Keep the spool's ceilings, and know how full it is and by which addresses results can leave."""
        links = (link.status() for link in self._links.values())
        # The host's own choice first, then each line that works: one of them reaches the broker.
        self._ways_out[:] = [None, *(address for link in links if link.up for address in link.addresses)]
        try:
            await self._outbox.call(self._spool.enforce)
            self._spool_status = await self._outbox.call(self._spool.status)
        except SpoolError as error:
            _LOG.debug("The spool could not be kept: %s", error)

    async def _keep_house_periodically(self) -> None:
        period_s = self._config.status_period_s
        while True:
            await asyncio.sleep(period_s * random.uniform(1 - _SPREAD_RATIO, 1 + _SPREAD_RATIO))  # noqa: S311 - no secret
            try:
                await self._tell_status()
            except Exception:  # noqa: BLE001 - logged with its traceback; the next round must come
                _LOG.exception("The status could not be told: this is a fault of the program")

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


def _guard(config: ProbeConfig) -> TargetGuard:
    guard = TargetGuard(config.targets)
    if guard.allows_nothing:
        _LOG.warning("targets is empty: nothing with a peer will be measured until this device's file names some")
    return guard
