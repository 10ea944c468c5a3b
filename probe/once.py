"""One measurement on the command line: by the same path as the agent's, but nothing of it is stored or sent.

What a person at the device aims at is that person's wish, so an address given here need not be within `targets`; a
peer of the controller's instruction must.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from probe.clock import SystemClock
from probe.config import ProbeConfig, Targets
from probe.errors import ConfigError
from probe.instruction import COMMAND_SCHEDULE, InstructionFile
from probe.links import Link
from probe.measure.exclusion import HeavyLock
from probe.measure.invocation import Instructed, Invocation
from probe.measure.measurer import Measurer
from probe.measure.rows import LastResult
from probe.measure.targets import TargetGuard
from probe.messages import BULK_PATHS, Action, BulkProtocol, Failure, NotRun, Peer, Progress, Result, encode
from probe.tasks import TASKS
from probe.tasks.base import AnyTask, Load
from probe.tasks.settings import SettingError, check_settings, read_settings

_PEER_GIVEN = "given"
# RFC 8762 section 4.1, and HTTP's own two.
_STAMP_PORT = 862
_HTTP_PORT = 80
_HTTPS_PORT = 443
_TEXT_ITEMS_MAX = 5  # of a curve: the rest is for --json


@dataclass(frozen=True, slots=True)
class Wish:
    """What the command line asks for."""

    task: str
    link: str | None
    peer: str | None
    stamp_port: int | None
    settings: tuple[str, ...]
    wait_s: float
    peer_protocol: BulkProtocol = "http"
    peer_tls: bool = False
    peer_stamp_key: str = ""


def measure_once(config: ProbeConfig, wish: Wish) -> Result:
    """Measure as wished.

    Raises:
        ConfigError: the wish names what is not there, with what there is.
    """
    task = _find_task(wish.task)
    link = _find_link(config, wish.link, task)
    peer = _find_peer(config, wish, task)
    parameters = _parse_settings(wish.settings, task, peer)
    action = Action(name="once", task=task.name, peers=(peer.name,) if peer else (), parameters=parameters)
    outbox = LastResult()
    measurer = Measurer(
        agent_id=config.agent_id,
        clock=SystemClock(),
        links={one.name: Link(one) for one in config.links},
        outbox=outbox,
        guard=_guard(config, (*_named(task, parameters), *((peer.host,) if peer and peer.name == _PEER_GIVEN else ()))),
        heavy=HeavyLock(_lock_path(config, task)),
        on_progress=_ignore,
        stamp_keys=config.stamp_keys,
        peer_ca_file=config.peer_tls.ca_file,
    )
    measurer.instructed = Instructed(peers={peer.name: peer} if peer else {})
    deadline_s = SystemClock().monotonic_s() + wish.wait_s
    asyncio.run(measurer.run(Invocation(COMMAND_SCHEDULE, link, (action,), deadline_s)))
    if outbox.result is None:
        raise ConfigError(wish.task, "gave no result: this is a fault of the program")
    return outbox.result


def _ignore(_: Progress) -> None:
    """Nobody watches."""


def _find_task(name: str) -> AnyTask:
    if name not in TASKS:
        raise ConfigError(name, "there is no such task", "one of " + ", ".join(sorted(TASKS)))
    return TASKS[name]


def _parse_settings(settings: tuple[str, ...], task: AnyTask, peer: Peer | None) -> dict[str, Any]:
    """The task's parameters, with which it can work, as far as that can be known."""
    try:
        parsed = read_settings(task, settings, "--set")
        check_settings(task, parsed, (peer,), "--set")
    except SettingError as error:
        raise ConfigError(error.place, error.problem, error.remedy) from None
    return parsed


def _find_link(config: ProbeConfig, name: str | None, task: AnyTask) -> str | None:
    names = [link.name for link in config.links]
    if name is None:
        return names[0] if task.needs_link else None
    if name not in names:
        raise ConfigError(f"--link {name}", "the configuration has no such link", "one of " + ", ".join(names))
    return name if task.needs_link else None


def _find_peer(config: ProbeConfig, wish: Wish, task: AnyTask) -> Peer | None:
    kept = InstructionFile(Path(config.state_dir), config.agent_id).load()
    peers = {peer.name: peer for peer in kept.peers} if kept is not None else {}
    known = f"a host[:http_port], or one of the instruction's: {', '.join(sorted(peers)) or 'none is stored here'}"
    if wish.peer is None:
        if task.needs_peer:
            raise ConfigError("--peer", f"{task.name} needs a peer", known)
        return None
    _check_key(config, wish)
    if wish.peer in peers:
        peer = peers[wish.peer]
        return msgspec.structs.replace(
            peer, stamp_port=wish.stamp_port or peer.stamp_port, stamp_key=wish.peer_stamp_key or peer.stamp_key
        )
    host, http_port = _split_peer(wish.peer, known)
    download_path, upload_path = BULK_PATHS[wish.peer_protocol]
    return Peer(
        name=_PEER_GIVEN,
        host=host,
        http_port=http_port or (_HTTPS_PORT if wish.peer_tls else _HTTP_PORT),
        stamp_port=wish.stamp_port or _STAMP_PORT,
        tls=wish.peer_tls,
        stamp_key=wish.peer_stamp_key,
        protocol=wish.peer_protocol,
        download_path=download_path,
        upload_path=upload_path,
    )


def _check_key(config: ProbeConfig, wish: Wish) -> None:
    if wish.peer_stamp_key and wish.peer_stamp_key not in config.stamp_keys:
        keys = ", ".join(sorted(config.stamp_keys)) or "none is there yet"
        place = f"--peer-stamp-key {wish.peer_stamp_key}"
        raise ConfigError(place, "the configuration has no such key in [stamp_keys]", f"one of: {keys}")


def _split_peer(text: str, known: str) -> tuple[str, int | None]:
    """Host and HTTP port of `host`, `host:port`, `v6` or `[v6]:port`; without a port, none."""
    host, port = text, ""
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if port and not (port.isdigit() and 0 < int(port) < 65536):  # noqa: PLR2004 - the range of a port
        raise ConfigError(f"--peer {text}", f"{port} is not a port", known)
    if not _is_address(host) and host != "localhost" and ("." not in host or ":" in host):
        raise ConfigError(f"--peer {text}", "is no known peer and no address", known)
    return host, int(port) if port else None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _named(task: AnyTask, parameters: dict[str, Any]) -> tuple[str, ...]:
    """The hosts that a person gave in parameters."""
    return task.targets(msgspec.convert(parameters, task.parameters))


def _guard(config: ProbeConfig, given: tuple[str, ...]) -> TargetGuard:
    """The device's targets, and what a person gave."""
    networks, domains = list(config.targets.networks), list(config.targets.domains)
    for host in given:
        (networks if _is_address(host) else domains).append(host)
    return TargetGuard(Targets(networks=tuple(networks), domains=tuple(domains)))


def _lock_path(config: ProbeConfig, task: AnyTask) -> Path:
    """The agent's own lock, so that two heavy measurements never share the device."""
    path = Path(config.state_dir) / "heavy.lock"
    if task.load is not Load.HEAVY:
        return path
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as error:
        problem = f"{task.name} is heavy and must hold {path}: {error.strerror}"
        raise ConfigError("state_dir", problem, "run it as root or as the agent's user") from None
    return path


def as_json(result: Result) -> str:
    """The result as it would travel."""
    return encode(result).decode()


def as_text(result: Result) -> str:
    """The result for a person."""
    what = " ".join(result.variant.values())
    where = f" on {result.link}" if result.link else ""
    whom = f" to {result.peer}" if result.peer else ""
    head = f"{result.task}{f' ({what})' if what else ''}{where}{whom}: {_outcome(result)}"
    lines = [f"  {name} = {_shown(value)}" for name, value in (result.values or {}).items()]
    lines += [f"  {warning}" for warning in _warnings(result)]
    cost = f"  took {result.duration_s or 0:.3f} s, {result.bytes_sent} bytes sent, {result.bytes_received} received"
    return "\n".join([head, *lines, cost])


def _warnings(result: Result) -> Iterator[str]:
    """What a reader must not overlook."""
    if result.fitness.host_limited:
        yield f"the host was the limit ({result.fitness.host_limited_by}), not the line: a lower bound"
    if (result.values or {}).get("lower_bound"):
        yield "a lower bound: it ended before the line was full"


def _outcome(result: Result) -> str:
    said: Failure | NotRun | None = result.failure or result.not_run
    if isinstance(said, Failure):
        return f"failed: {said.operation} {said.kind}" + (f": {said.detail}" if said.detail else "")
    if isinstance(said, NotRun):
        return f"not run: {said.reason}" + (f": {said.detail}" if said.detail else "")
    return "measured"


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple) and len(value) > _TEXT_ITEMS_MAX:
        return f"{len(value)} items, see --json"
    return json.dumps(value, ensure_ascii=False)
