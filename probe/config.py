"""The device's own configuration: one TOML file, strict.

It says who the probe is, which access lines it has, where the broker is and what it may be aimed at. What to
measure is not here: that is the controller's Instruction.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from probe.errors import ConfigError
from probe.messages import AGENT_ID_PATTERN, NAME_PATTERN

MIB = 1024 * 1024
Seconds = Annotated[float, msgspec.Meta(gt=0)]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
AgentIdText = Annotated[str, msgspec.Meta(pattern=AGENT_ID_PATTERN)]
NameText = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]
# linux/if.h: IFNAMSIZ is 16 with the terminating zero.
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
S = TypeVar("S", bound=msgspec.Struct)
_KEY_BYTES_MIN = 16
_KEY_BYTES_MAX = 64
_KEY_FILE_BYTES_MAX = 2 * _KEY_BYTES_MAX + 8  # with a line end and some blanks
_OTHERS_MODE = 0o077
InterfaceText = Annotated[str, msgspec.Meta(pattern=r"^[^\s/]{1,15}$")]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of every configured thing: an unknown key is a mistake, not a wish."""


class Tls(Section, frozen=True):
    """The probe's certificate, and the authority that it trusts. Paths of PEM files."""

    ca_file: str
    cert_file: str | None = None
    key_file: str | None = None


class Broker(Section, frozen=True):
    """Where reports go. `keepalive_s` stays below common CGNAT idle timers (5 minutes and less)."""

    host: str
    port: Port = 8883
    tls: Tls | None = None
    username: str | None = None
    password_file: str | None = None
    keepalive_s: Annotated[int, msgspec.Meta(ge=5, le=300)] = 30


class PeerTls(Section, frozen=True):
    """Whom to trust when a peer has TLS: a PEM file of authorities; without it, the system's."""

    ca_file: str | None = None


class Spool(Section, frozen=True):
    """Ceilings of the spool. What is oldest goes first, and is counted."""

    max_age_s: Seconds = 30 * 86400.0
    max_bytes: Annotated[int, msgspec.Meta(ge=MIB)] = 256 * MIB
    min_free_disk_bytes: Annotated[int, msgspec.Meta(ge=0)] = 256 * MIB


class LinkConfig(Section, frozen=True):
    """One access line. Without `source_address` the interface's own is taken at each use.

    `resolvers` are the link's own DNS servers (`address` or `address:port`, `[v6]:port`); without them the host's
    /etc/resolv.conf is read, still through this link.
    """

    name: NameText
    interface: InterfaceText
    source_address: str | None = None
    source_address_v6: str | None = None
    resolvers: tuple[str, ...] = ()


class Targets(Section, frozen=True):
    """What this device agrees to measure: networks and domain suffixes. A stolen controller cannot widen it."""

    networks: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()


class ProbeConfig(Section, frozen=True):
    """The whole file. `stamp_keys` has the file of each key that a peer's `stamp_key` may name."""

    agent_id: AgentIdText
    broker: Broker
    links: Annotated[tuple[LinkConfig, ...], msgspec.Meta(min_length=1)]
    targets: Targets = Targets()
    stamp_keys: dict[NameText, str] = {}
    peer_tls: PeerTls = PeerTls()
    state_dir: str = "/var/lib/fleet-probe"
    spool: Spool = Spool()
    status_period_s: Seconds = 60.0
    log_level: str = "INFO"


def load(path: Path) -> ProbeConfig:
    """Read and check a probe's configuration. Relative paths in it start at its own folder.

    Raises:
        ConfigError: with the place and the remedy.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(str(path), "there is no such file", "name one with --config") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(str(path), f"is not TOML: {error}") from None
    config = _under(path.absolute().parent, convert_strict(raw, ProbeConfig, str(path)))
    _check_meaning(config, str(path))
    return config


def _under(folder: Path, config: ProbeConfig) -> ProbeConfig:
    """The same, its relative paths starting at the file's folder: systemd starts the agent somewhere else."""

    def absolute(text: str | None) -> str | None:
        return str(folder / text) if text else text

    tls = config.broker.tls
    if tls is not None:
        tls = msgspec.structs.replace(
            tls,
            ca_file=absolute(tls.ca_file),
            cert_file=absolute(tls.cert_file),
            key_file=absolute(tls.key_file),
        )
    broker = msgspec.structs.replace(config.broker, tls=tls, password_file=absolute(config.broker.password_file))
    return msgspec.structs.replace(
        config,
        broker=broker,
        stamp_keys={name: str(folder / text) for name, text in config.stamp_keys.items()},
        peer_tls=PeerTls(ca_file=absolute(config.peer_tls.ca_file)),
        state_dir=absolute(config.state_dir),
    )


def convert_strict(raw: Any, wanted: type[S], place: str) -> S:
    """Give raw TOML, YAML or JSON data the shape `wanted`.

    Raises:
        ConfigError: with the key in `place` and, for a misspelt key, the one that was probably meant.
    """
    try:
        return msgspec.convert(raw, wanted)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$")
        key = path.rstrip("`").lstrip(".")
        raise ConfigError(f"{place}: {key}" if key else place, problem, _remedy(problem, wanted)) from None


def _remedy(problem: str, wanted: type[Any]) -> str:
    unknown = re.search(r"unknown field `(.+)`", problem)
    if unknown is None:
        return ""
    known = sorted(_field_names(wanted))
    close = difflib.get_close_matches(unknown[1], known, n=1)
    return f"did you mean `{close[0]}`?" if close else "remove it, or see the README for the keys there are"


def _field_names(wanted: type[Any]) -> set[str]:
    """Every key that occurs anywhere in a configuration type."""
    names: set[str] = set()
    pending: list[Any] = [wanted]
    while pending:
        part = pending.pop()
        if isinstance(part, type) and issubclass(part, msgspec.Struct):
            fields = msgspec.structs.fields(part)
            names.update(field.encode_name for field in fields)
            pending.extend(field.type for field in fields)
        pending.extend(getattr(part, "__args__", ()))
    return names


def _check_meaning(config: ProbeConfig, place: str) -> None:
    seen: set[str] = set()
    for index, link in enumerate(config.links):
        where = f"{place}: links[{index}]"
        if link.name in seen:
            raise ConfigError(f"{where}.name", f"two links are called {link.name!r}", "rename one")
        seen.add(link.name)
        _check_addresses(link, where)
    for index, network in enumerate(config.targets.networks):
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            raise ConfigError(
                f"{place}: targets.networks[{index}]", str(error), "write it like 198.51.100.0/24"
            ) from None
    if config.log_level not in LOG_LEVELS:
        raise ConfigError(
            f"{place}: log_level", f"unknown level {config.log_level!r}", "one of " + ", ".join(LOG_LEVELS)
        )


def _check_addresses(link: LinkConfig, where: str) -> None:
    for key, family in (("source_address", 4), ("source_address_v6", 6)):
        text = getattr(link, key)
        if text is None:
            continue
        try:
            version = ipaddress.ip_address(text).version
        except ValueError as error:
            raise ConfigError(f"{where}.{key}", str(error), "write one address, without a prefix length") from None
        if version != family:
            raise ConfigError(f"{where}.{key}", f"{text} is an IPv{version} address", f"IPv{family} belongs here")
    for index, resolver in enumerate(link.resolvers):
        try:
            split_host_port(resolver, 53)
        except ValueError as error:
            raise ConfigError(f"{where}.resolvers[{index}]", str(error), "write 192.0.2.1 or 192.0.2.1:53") from None


def split_host_port(text: str, default_port: int) -> tuple[str, int]:
    """Split `address`, `address:port` or `[v6]:port`.

    Raises:
        ValueError: the address is not an IP address, or the port not a port.
    """
    host, port = text, ""
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    number = int(port) if port else default_port
    if not 0 < number < 65536:  # noqa: PLR2004 - the range of a port
        raise ValueError(f"{number} is not a port")
    return str(ipaddress.ip_address(host)), number


def read_stamp_key(path: Path) -> bytes:
    """The key of authenticated STAMP: a file of hexadecimal digits that nobody but its owner may read.

    `openssl rand -hex 32` makes one. RFC 4868 section 2.1.1 asks for a key as long as the hash, 32 bytes; 16 is the
    least that is accepted, and over a block of SHA-256 a key only gets shorter.

    Raises:
        ConfigError: it cannot be read, others may read it, or it is no such key. Has nothing of the key.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(_KEY_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(str(path), f"the STAMP key cannot be read: {error.strerror}") from None
    if mode & _OTHERS_MODE:
        raise ConfigError(str(path), "others than its owner may use the STAMP key", f"chmod 600 {path}")
    try:
        key = bytes.fromhex(text.decode("ascii").strip())
    except ValueError:
        key = b""
    if not _KEY_BYTES_MIN <= len(key) <= _KEY_BYTES_MAX:
        problem = f"is no STAMP key: {2 * _KEY_BYTES_MIN} to {2 * _KEY_BYTES_MAX} hexadecimal digits and nothing else"
        raise ConfigError(str(path), problem, "make one with `openssl rand -hex 32`")
    return key
