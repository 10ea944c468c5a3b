"""What the controller wants of this agent: the instruction to follow, and commands to run once."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Coroutine
from typing import Any

import msgspec

from probe.clock import NS_PER_S, Clock
from probe.errors import one_line
from probe.instruction import COMMAND_SCHEDULE, InstructionError, InstructionFile, parse, problem_of
from probe.measure.invocation import Instructed, Invocation
from probe.measure.measurer import Measurer
from probe.messages import SCHEMA_VERSION, AgentId, Command, Instruction, LinkName, NotRunReason
from probe.schedule import Scheduler
from probe.spool.thread import SpoolThread
from probe.tasks import TASKS

_LOG = logging.getLogger(__name__)
# Ids of commands that were run: a broker delivers at least once. More than a session's queue holds for one agent.
_COMMANDS_REMEMBERED = 256
# On-demand measurements at a time; a person asks for one or two.
_COMMANDS_RUNNING_MAX = 16
# A command without a near end does not keep a heavy measurement waiting for ever.
_COMMAND_WAIT_S_MAX = 600.0
_DOUBTS_TOLD_MAX = 5


class Orders:
    """Takes the controller's messages, as bytes, and has them obeyed.

    Args:
        agent_id: this agent.
        clock: the clocks.
        links: the names of its links.
        measurer: runs commands, and measures by the instruction.
        scheduler: starts what the instruction schedules.
        disk: the thread that writes.
        file: where the instruction in force is kept.
        spawn: runs something beside the rest.
        tell_status: makes the agent say how it is.
    """

    def __init__(
        self,
        *,
        agent_id: AgentId,
        clock: Clock,
        links: Collection[LinkName],
        measurer: Measurer,
        scheduler: Scheduler,
        disk: SpoolThread,
        file: InstructionFile,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        tell_status: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self.instruction: Instruction | None = None
        self.problem: str | None = None
        self._agent_id = agent_id
        self._clock = clock
        self._links = links
        self._measurer = measurer
        self._scheduler = scheduler
        self._disk = disk
        self._file = file
        self._spawn = spawn
        self._tell_status = tell_status
        self._commands = _Remembered(_COMMANDS_REMEMBERED)
        self._commands_running = 0
        self._is_kept = True

    def take_kept_instruction(self) -> None:
        """Follow the instruction on disk, where there is one, until the controller says otherwise."""
        kept = self._file.load()
        if kept is not None:
            self._put_in_force(kept)

    def take_instruction(self, payload: bytes) -> None:
        """Follow a retained instruction, or stay with the one in force and say why."""
        if not payload:
            _LOG.info("The retained instruction was cleared: the one in force stays")
            return
        try:
            instruction = parse(payload, self._agent_id)
        except InstructionError as error:
            self.problem = str(error)
            _LOG.warning("An instruction was refused, the one before stays in force: %s", error)
            self._spawn(self._tell_status())
            return
        if not _same_orders(instruction, self.instruction):
            self._put_in_force(instruction)
            self._spawn(self._keep_instruction(payload))
        elif not self._is_kept:
            self._spawn(self._keep_instruction(payload))
        elif self.problem != _doubts(instruction, self._links):
            self.problem = _doubts(instruction, self._links)
            self._spawn(self._tell_status())

    def _put_in_force(self, instruction: Instruction) -> None:
        self.instruction = instruction
        self.problem = _doubts(instruction, self._links)
        peers = {peer.name: peer for peer in instruction.peers}
        self._measurer.instructed = Instructed(peers=peers, suppressions=instruction.suppressions)
        self._scheduler.replace(instruction.schedules, tuple(self._links))
        self._measurer.forget_counters_except(self._scheduler.keys)
        revision, count = instruction.revision[:12], len(instruction.schedules)
        _LOG.info("Instruction %s came into force: %d schedules", revision, count)

    async def _keep_instruction(self, payload: bytes) -> None:
        try:
            await self._disk.call(self._file.save, payload)
            self._is_kept = True
            self.problem = _doubts(self.instruction, self._links) if self.instruction is not None else None
        except OSError as error:
            self._is_kept = False
            self.problem = f"it is in force and could not be kept on disk: {error.strerror}"
            _LOG.error("The instruction could not be kept on disk: %s", error)
        await self._tell_status()

    def take_command(self, payload: bytes) -> None:
        """Run one on-demand action, once, while it is still wanted."""
        try:
            command = msgspec.json.decode(payload, type=Command)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            _LOG.warning("A command was refused: %s", error)
            return
        problem = problem_of(command)
        if problem is not None:
            _LOG.warning("A command was refused: %s", problem)
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
        deadline_s = self._clock.monotonic_s() + wait_s
        for link in links:
            actions, command_id = (command.action,), command.command_id
            await self._run_one(Invocation(COMMAND_SCHEDULE, link, actions, deadline_s, command_id=command_id))

    async def _run_one(self, invocation: Invocation) -> None:
        if self._commands_running >= _COMMANDS_RUNNING_MAX:
            await self._measurer.skip(invocation, NotRunReason.OVERLAP, "too many commands at a time")
            return
        self._commands_running += 1
        try:
            await self._measurer.run(invocation)
        finally:
            self._commands_running -= 1


def _same_orders(one: Instruction, other: Instruction | None) -> bool:
    """Whether they say the same; a controller that publishes all instructions again dates them anew."""
    return other is not None and one == msgspec.structs.replace(other, issued_unix_ns=one.issued_unix_ns)


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


def _doubts(instruction: Instruction, links: Collection[LinkName]) -> str | None:
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
    return one_line("; ".join(sorted(doubts)[:_DOUBTS_TOLD_MAX])) or None
