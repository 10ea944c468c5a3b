"""`fleet-controller measure`: one action, now, on one probe."""

from __future__ import annotations

import argparse
import math
import secrets
import time
from collections.abc import Iterable
from typing import Any, Final

from fleet_controller.broker_session import BrokerSession, Outgoing
from fleet_controller.commands.terminal import complain, say, say_json
from fleet_controller.config import ControllerConfig, load
from fleet_controller.errors import BrokerError, ConfigError
from fleet_controller.fleet.load import Fleet, load_fleet
from fleet_controller.fleet.parts import suggest
from fleet_controller.instruct import compile_instruction
from fleet_controller.store.database import Store, quote_string
from probe.messages import Action, Command, Peer, encode, topic
from probe.tasks import TASKS
from probe.tasks.base import AnyTask
from probe.tasks.settings import SettingError, check_settings, read_settings

_OK: Final = 0
_NOTHING_CAME: Final = 1
_NO_SUBSCRIBER: Final = 0x10  # MQTT 5 section 3.4.2.1: accepted, and nobody is there to take it
_POLL_S: Final = 0.5
_NS_PER_S: Final = 1_000_000_000
# An agent whose clock is off by less than this is still found.
_LOOK_BACK: Final = "1d"


def measure(args: argparse.Namespace) -> int:
    """Publish the command; with `--wait`, print its results as they stand in the database."""
    config = load(args.config)
    fleet = load_fleet(config.fleet_file)
    command = build_command(fleet, args, time.time_ns())
    _publish(config, args.agent, command, args.expires)
    if args.wait is None:
        if args.json:
            say_json({"command_id": command.command_id})
        else:
            say(command.command_id)
        return _OK
    expected = expected_results(fleet, args.agent, command)
    rows = _wait(config, args.agent, command, expected, args.wait)
    _print(rows, command, as_json=args.json)
    if len(rows) < expected:
        complain(f"{len(rows)} of {expected} results within {args.wait:g} s")
    return _OK if len(rows) >= expected else _NOTHING_CAME


def build_command(fleet: Fleet, args: argparse.Namespace, now_unix_ns: int) -> Command:
    """The command that these arguments mean.

    Raises:
        ConfigError: the fleet has no such probe, link or peer, there is no such task, or a parameter is wrong.
    """
    _known(args.agent, fleet.probes, "probe")
    task = TASKS[_known(args.task, TASKS, "task")]
    for link in args.link:
        _known(link, fleet.probes[args.agent].links, f"link of {args.agent}")
    # The agent knows the peers of its instruction; one that it has not been told of it would have to refuse.
    told = {peer.name: peer for peer in compile_instruction(fleet, args.agent, 0).peers}
    peers = [told[_known(peer, told, f"peer in the instruction of {args.agent}")] for peer in args.peer]
    if task.needs_peer and not args.peer:
        raise ConfigError("--peer", f"the task {task.name} needs a peer", suggest("", told, "peer"))
    parameters = _parameters(task, args.set, peers or [None])
    return Command(
        command_id=secrets.token_hex(8),
        action=Action(name=task.name, task=task.name, peers=tuple(args.peer), parameters=parameters),
        expires_unix_ns=now_unix_ns + round(args.expires * _NS_PER_S),
        links=tuple(args.link),
    )


def expected_results(fleet: Fleet, agent_id: str, command: Command) -> int:
    """How many results the command leads to: one for each link and peer."""
    links = command.links or tuple(fleet.probes[agent_id].links)
    return (len(links) if TASKS[command.action.task].needs_link else 1) * max(1, len(command.action.peers))


def _known(name: str, known: Any, kind: str) -> str:
    if name not in known:
        raise ConfigError(name, f"there is no such {kind}", suggest(name, tuple(known), kind))
    return name


def _parameters(task: AnyTask, settings: list[str], peers: Iterable[Peer | None]) -> dict[str, Any]:
    """The parameters, with which the task can work at each of the peers, as far as that can be known."""
    try:
        parameters = read_settings(task, settings, "--set")
        check_settings(task, parameters, peers, "--set")
    except SettingError as error:
        raise ConfigError(error.place, error.problem, error.remedy) from None
    return parameters


def _publish(config: ControllerConfig, agent_id: str, command: Command, expires_s: float) -> None:
    message = Outgoing(topic(agent_id, "command"), encode(command), expiry_s=math.ceil(expires_s))
    with BrokerSession(config.broker, "measure") as session:
        code = session.publish([message])[0]
    if code.is_failure:
        raise BrokerError(f"the broker refused the command: {code}")
    if code.value == _NO_SUBSCRIBER:
        raise BrokerError(f"the broker knows no agent {agent_id}: it was never connected, or is gone for too long")


def _wait(
    config: ControllerConfig, agent_id: str, command: Command, expected: int, wait_s: float
) -> list[dict[str, Any]]:
    """The command's results once all stand in the database, or what there is of them at the end of the time."""
    question = (
        f'SELECT * FROM "{command.action.task}" '  # noqa: S608 - quoted, or our own words
        f'WHERE "agent_id" = {quote_string(agent_id)} AND "command_id" = {quote_string(command.command_id)} '
        f"AND time > now() - {_LOOK_BACK}"
    )
    deadline = time.monotonic() + wait_s
    store = Store(config.influxdb, TASKS)
    try:
        while True:
            rows = store.query(question)
            if len(rows) >= expected or time.monotonic() > deadline:
                return rows
            time.sleep(_POLL_S)
    finally:
        store.close()


def _print(rows: list[dict[str, Any]], command: Command, *, as_json: bool) -> None:
    results = [{key: value for key, value in row.items() if value is not None} for row in rows]
    if as_json:
        say_json({"command_id": command.command_id, "results": results})
        return
    for result in results:
        say(" ".join(str(result[key]) for key in ("measurement", "link", "peer", "outcome") if key in result))
        for key, value in sorted(result.items()):
            say(f"  {key} = {value}")
