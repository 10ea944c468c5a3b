"""Is this device ready to be a probe? Looks at everything that the configuration names."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from probe.clock import SystemClock
from probe.config import Broker, ProbeConfig, read_stamp_key
from probe.errors import ConfigError
from probe.instruction import InstructionFile
from probe.links import Link
from probe.measure.targets import TargetGuard
from probe.messages import ClockState

# A mobile line that wakes up takes several seconds.
_CONNECT_TIME_OUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    state: Literal["ok", "warning", "problem"]
    detail: str


def check(config: ProbeConfig, *, online: bool) -> list[Finding]:
    """Look at the device; with `online` also connect to the broker. Changes nothing."""
    findings = [Finding("configuration", "ok", f"agent {config.agent_id}, {len(config.links)} links")]
    for link_config in config.links:
        findings += _check_link(Link(link_config))
    findings += [_check_targets(config), _check_state(config), _check_instruction(config), _check_clock()]
    findings += _check_files(config)
    findings += _check_stamp_keys(config)
    if online:
        findings.append(_check_broker(config.broker))
    return findings


def _check_link(link: Link) -> Iterator[Finding]:
    status = link.status()
    what = f"link {link.name}"
    if not status.up:
        yield Finding(what, "problem", f"interface {link.interface} is absent or down")
    elif not status.addresses and not (link.config.source_address or link.config.source_address_v6):
        yield Finding(what, "problem", f"interface {link.interface} has no address")
    else:
        yield Finding(what, "ok", f"{link.interface}: {', '.join(status.addresses) or 'addresses as configured'}")
    resolvers = ", ".join(f"{host} port {port}" for host, port in link.resolvers())
    if resolvers:
        yield Finding(f"{what} resolvers", "ok", resolvers)
    else:
        yield Finding(f"{what} resolvers", "warning", "none: name them in `resolvers` of the link")


def _check_targets(config: ProbeConfig) -> Finding:
    if TargetGuard(config.targets).allows_nothing:
        return Finding("targets", "warning", "empty: nothing with a peer will be measured; name networks or domains")
    return Finding("targets", "ok", ", ".join((*config.targets.networks, *config.targets.domains)))


def _check_state(config: ProbeConfig) -> Finding:
    folder = Path(config.state_dir)
    present = folder if folder.is_dir() else folder.parent
    if not os.access(present, os.W_OK | os.X_OK):
        return Finding("state_dir", "problem", f"{folder} cannot be written: make it, or run as the agent's user")
    disk = os.statvfs(present)
    free_bytes = disk.f_bavail * disk.f_frsize
    if free_bytes < config.spool.min_free_disk_bytes:
        return Finding("state_dir", "problem", f"{free_bytes} bytes free, less than spool.min_free_disk_bytes")
    return Finding("state_dir", "ok", f"{folder}, {free_bytes} bytes free")


def _check_instruction(config: ProbeConfig) -> Finding:
    instruction = InstructionFile(Path(config.state_dir), config.agent_id).load()
    if instruction is None:
        return Finding("instruction", "warning", "none is kept here yet: the controller sends one")
    return Finding("instruction", "ok", f"{instruction.revision}, {len(instruction.schedules)} schedules")


def _check_clock() -> Finding:
    if SystemClock().reading().state is ClockState.SYNCHRONISED:
        return Finding("clock", "ok", "synchronised")
    return Finding("clock", "warning", "no time source steers it: results are marked until one does")


def _check_files(config: ProbeConfig) -> Iterator[Finding]:
    tls = config.broker.tls
    files = {
        "broker.tls.ca_file": tls.ca_file if tls else None,
        "broker.tls.cert_file": tls.cert_file if tls else None,
        "broker.tls.key_file": tls.key_file if tls else None,
        "broker.password_file": config.broker.password_file,
        "peer_tls.ca_file": config.peer_tls.ca_file,
    }
    for what, path in files.items():
        if path is None:
            continue
        readable = os.access(path, os.R_OK)
        yield Finding(what, "ok" if readable else "problem", path if readable else f"{path} cannot be read")


def _check_stamp_keys(config: ProbeConfig) -> Iterator[Finding]:
    for name, path in config.stamp_keys.items():
        try:
            read_stamp_key(Path(path))
        except ConfigError as error:
            yield Finding(f"stamp_keys.{name}", "problem", str(error))
        else:
            yield Finding(f"stamp_keys.{name}", "ok", path)


def _check_broker(broker: Broker) -> Finding:
    """Connect, with TLS where it is set, and no further: a second client of our name would put the agent off line."""
    where = f"{broker.host} port {broker.port}"
    try:
        with socket.create_connection((broker.host, broker.port), timeout=_CONNECT_TIME_OUT_S) as sock:
            if broker.tls is not None:
                context = ssl.create_default_context(cafile=broker.tls.ca_file)
                if broker.tls.cert_file is not None:
                    context.load_cert_chain(broker.tls.cert_file, broker.tls.key_file)
                context.wrap_socket(sock, server_hostname=broker.host).close()
    except (OSError, ssl.SSLError) as error:
        return Finding("broker", "problem", f"{where}: {error}")
    return Finding("broker", "ok", f"{where} answers")
