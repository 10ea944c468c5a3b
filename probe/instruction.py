"""The desired state of this agent: checked before it comes into force, kept on disk, in force without a controller.

A bad instruction changes nothing: the one before stays in force and the agent's status says what was wrong.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from probe.clock import NS_PER_S
from probe.errors import ProbeError, one_line
from probe.messages import (
    COMMAND_SCHEDULE,
    LINKS_MAX,
    MEASUREMENTS_MAX,
    NAME_PATTERN,
    PACKET_BYTES_MAX,
    PEERS_MAX,
    SCHEDULES_MAX,
    SCHEMA_VERSION,
    SUPPRESSIONS_MAX,
    AgentId,
    Command,
    Instruction,
    Peer,
    Schedule,
    Suppression,
)

__all__ = ["COMMAND_SCHEDULE", "InstructionError", "InstructionFile", "parse", "problem_of", "suppressing"]

_LOG = logging.getLogger(__name__)
_PERIOD_S_MIN = 1.0
_PERIOD_S_MAX = 31 * 86400.0
_DAY_S = 86400
_NAME = re.compile(NAME_PATTERN)
_PATH = re.compile(r"/[!-~]{0,255}")
_HOST = re.compile(r"[0-9A-Za-z._:-]{1,253}")
_PORT_MAX = 65535
_ID_CHARACTERS_MAX = 64


class InstructionError(ProbeError):
    """An instruction that this agent does not follow: what is wrong with it, in one line."""


def parse(payload: bytes, agent_id: AgentId) -> Instruction:
    """Decode an instruction and check that it can be followed.

    Raises:
        InstructionError: it cannot.
    """
    if len(payload) > PACKET_BYTES_MAX:
        raise InstructionError(f"{len(payload)} bytes are more than the {PACKET_BYTES_MAX} of a message")
    try:
        instruction = msgspec.json.decode(payload, type=Instruction)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InstructionError(one_line(str(error))) from None
    if instruction.agent_id != agent_id:
        raise InstructionError(f"it is for agent {instruction.agent_id!r}, this one is {agent_id!r}")
    if instruction.schema_version > SCHEMA_VERSION:
        raise InstructionError(f"schema version {instruction.schema_version}; this agent reads up to {SCHEMA_VERSION}")
    _check(instruction)
    return instruction


def problem_of(command: Command) -> str | None:
    """Why a command is not to be run: it is held to the bounds of an instruction. Absent when it may be."""
    if len(command.command_id) > _ID_CHARACTERS_MAX:
        return f"its id is longer than {_ID_CHARACTERS_MAX} characters"
    try:
        _check_names("action", (command.action.name,), 1)
        _check_names("task", (command.action.task,), 1)
        _check_names("peers", command.action.peers, PEERS_MAX)
        _check_names("links", command.links, LINKS_MAX)
    except InstructionError as error:
        return str(error)
    count = max(1, len(command.action.peers)) * max(1, len(command.links))
    return f"{count} measurements, at most {MEASUREMENTS_MAX}" if count > MEASUREMENTS_MAX else None


def _check(instruction: Instruction) -> None:
    _check_names("peers", (peer.name for peer in instruction.peers), PEERS_MAX)
    _check_names("schedules", (schedule.name for schedule in instruction.schedules), SCHEDULES_MAX)
    for peer in instruction.peers:
        _check_peer(peer)
    if any(len(suppression.name) > _ID_CHARACTERS_MAX for suppression in instruction.suppressions):
        raise InstructionError(f"suppressions: a name is longer than {_ID_CHARACTERS_MAX} characters")
    if len(instruction.suppressions) > SUPPRESSIONS_MAX:
        raise InstructionError(f"suppressions: more than {SUPPRESSIONS_MAX}")
    for schedule in instruction.schedules:
        _check_schedule(schedule)
    for suppression in instruction.suppressions:
        _check_suppression(suppression)


def _check_peer(peer: Peer) -> None:
    """What becomes part of a request must not be able to end it: a stolen controller would speak for the probe."""
    for path in (peer.download_path, peer.upload_path, peer.small_path):
        if _PATH.fullmatch(path) is None:
            raise InstructionError(f"peer {peer.name}: {one_line(path)!r} is not a path")
    if _HOST.fullmatch(peer.host) is None:
        raise InstructionError(f"peer {peer.name}: {one_line(peer.host)!r} is not a host")
    if peer.stamp_key and _NAME.fullmatch(peer.stamp_key) is None:
        raise InstructionError(f"peer {peer.name}: {one_line(peer.stamp_key)!r} is not the name of a STAMP key")
    for port in (peer.stamp_port, peer.http_port):
        if not 0 < port <= _PORT_MAX:
            raise InstructionError(f"peer {peer.name}: {port} is not a port")


def _check_schedule(schedule: Schedule) -> None:
    place = f"schedule {schedule.name}"
    if schedule.name == COMMAND_SCHEDULE:
        raise InstructionError(f"{place}: this name is kept for commands")
    if not _PERIOD_S_MIN <= schedule.period_s <= _PERIOD_S_MAX:
        raise InstructionError(f"{place}: period_s {schedule.period_s:g} is not {_PERIOD_S_MIN:g} to {_PERIOD_S_MAX:g}")
    _check_names(f"{place}: actions", (action.name for action in schedule.actions), MEASUREMENTS_MAX)
    _check_names(f"{place}: tasks", {action.task for action in schedule.actions}, MEASUREMENTS_MAX)
    _check_names(f"{place}: links", schedule.links, LINKS_MAX)
    if sum(max(len(action.peers), 1) for action in schedule.actions) > MEASUREMENTS_MAX:
        raise InstructionError(f"{place}: more than {MEASUREMENTS_MAX} measurements in one slot")


def _check_suppression(suppression: Suppression) -> None:
    daily = (suppression.daily_start_s, suppression.daily_end_s)
    if (daily[0] is None) != (daily[1] is None):
        raise InstructionError(f"suppression {suppression.name}: daily_start_s and daily_end_s belong together")
    if any(second is not None and not 0 <= second <= _DAY_S for second in daily):
        raise InstructionError(f"suppression {suppression.name}: a second of the day is 0 to {_DAY_S}")


def _check_names(place: str, names: Iterable[str], count_max: int) -> None:
    seen: set[str] = set()
    for name in names:
        if _NAME.fullmatch(name) is None:
            raise InstructionError(f"{place}: {one_line(name)!r} is not a name")
        if name in seen:
            raise InstructionError(f"{place}: {name!r} stands there twice")
        seen.add(name)
    if len(seen) > count_max:
        raise InstructionError(f"{place}: {len(seen)}, at most {count_max}")


def suppressing(suppressions: Sequence[Suppression], schedule: str, unix_ns: int) -> Suppression | None:
    """The first suppression that holds for a schedule at a moment.

    A command is a person's wish of this moment, given in full view of quiet hours: only a suppression that names
    `command` holds it back.
    """
    for suppression in suppressions:
        named = schedule in suppression.schedules or (not suppression.schedules and schedule != COMMAND_SCHEDULE)
        if named and _in_window(suppression, unix_ns):
            return suppression
    return None


def _in_window(suppression: Suppression, unix_ns: int) -> bool:
    if suppression.start_unix_ns is not None and unix_ns < suppression.start_unix_ns:
        return False
    if suppression.end_unix_ns is not None and unix_ns >= suppression.end_unix_ns:
        return False
    start_s, end_s = suppression.daily_start_s, suppression.daily_end_s
    if start_s is None or end_s is None:
        return True
    second = unix_ns // NS_PER_S % _DAY_S
    return start_s <= second < end_s if start_s < end_s else second >= start_s or second < end_s


class InstructionFile:
    """The instruction in force, on disk as it was received."""

    def __init__(self, state_dir: Path, agent_id: AgentId) -> None:
        self._path = state_dir / "instruction.json"
        self._agent_id = agent_id

    def load(self) -> Instruction | None:
        """The one kept, absent when there is none that can be followed."""
        try:
            return parse(self._path.read_bytes(), self._agent_id)
        except FileNotFoundError:
            return None
        except (OSError, InstructionError) as error:
            _LOG.warning("The instruction in %s was left alone: %s", self._path, error)
            return None

    def save(self, payload: bytes) -> None:
        """Replace it so that a power cut leaves either the old one or the new one.

        Raises:
            OSError: the disk does not take it.
        """
        beside = self._path.with_suffix(".new")
        with beside.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)
        # The rename itself is durable only once the folder is.
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
