"""The controller's own configuration: one TOML file, strict.

It says where the broker and the database are, where the fleet file is and how much may be held. What the probes
measure is not here: that is the fleet file.

    fleet_file = "fleet.yaml"            # relative paths start at this file's folder
    state_dir = "/var/lib/fleet-controller"
    [broker]
    host = "mqtt.example.vn"
    tls = { ca_file = "ca.pem", cert_file = "controller.pem", key_file = "controller.key" }
    [influxdb]
    url = "http://127.0.0.1:8086"
"""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec

from fleet_controller.errors import ConfigError
from probe.messages import SHARDS

MIB = 1024 * 1024
DAY_S = 86_400.0
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]
Text = Annotated[str, msgspec.Meta(min_length=1)]
Shard = Annotated[int, msgspec.Meta(ge=0, lt=SHARDS)]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of every configured thing: an unknown key is a mistake, not a wish."""


class TlsConfig(Section, frozen=True):
    """The controller's certificate, and the authority that it trusts. Paths of PEM files."""

    ca_file: Path
    cert_file: Path | None = None
    key_file: Path | None = None


class BrokerConfig(Section, frozen=True):
    """Where reports come from.

    `client_id` names the durable session: it stays the same for ever, and two controllers must not share one.
    """

    host: Text
    port: Port = 8883
    tls: TlsConfig | None = None
    username: str | None = None
    password_file: Path | None = None
    client_id: Text = "fleet-controller"
    keepalive_s: Annotated[int, msgspec.Meta(ge=5, le=300)] = 30


class InfluxConfig(Section, frozen=True):
    """Where results go. `auto` asks the server which write endpoint it has.

    `database` is what the 1.x endpoints and every InfluxQL query name; `bucket` is what the v2 write endpoint names,
    the same as `database` where absent.
    """

    url: str
    api: Literal["auto", "v1", "v2"] = "auto"
    database: Text = "fleet"
    bucket: Text | None = None
    org: str = "fleet"
    token_file: Path | None = None
    username: str | None = None
    password_file: Path | None = None
    timeout_s: Seconds = 10.0

    @property
    def bucket_name(self) -> str:
        """What the v2 write endpoint names."""
        return self.bucket or self.database


class QuarantineConfig(Section, frozen=True):
    """Ceilings of what is kept of messages that could not be accepted. What is oldest goes first, and is counted."""

    max_bytes: Annotated[int, msgspec.Meta(ge=MIB)] = 256 * MIB
    max_age_s: Seconds = 90 * DAY_S


class BatchConfig(Section, frozen=True):
    """How much is taken together, and how much may wait in memory.

    2000 messages or 100 ms is where one write per batch costs less than receiving the messages. `max_held_bytes` is
    the bound of memory when the database is slow: the broker keeps the rest.
    """

    max_messages: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 2000
    max_wait_s: Annotated[float, msgspec.Meta(gt=0, le=10)] = 0.1
    max_points: Annotated[int, msgspec.Meta(ge=1, le=50_000)] = 5000
    max_held_messages: Annotated[int, msgspec.Meta(ge=1)] = 50_000
    max_held_bytes: Annotated[int, msgspec.Meta(ge=MIB)] = 128 * MIB


class ControllerConfig(Section, frozen=True):
    """The whole file. Absent `shards` means all of them."""

    broker: BrokerConfig
    influxdb: InfluxConfig
    fleet_file: Path = Path("fleet.yaml")
    state_dir: Path = Path("/var/lib/fleet-controller")
    quarantine: QuarantineConfig = QuarantineConfig()
    batch: BatchConfig = BatchConfig()
    shards: Annotated[tuple[Shard, ...], msgspec.Meta(min_length=1)] | None = None
    log_level: str = "INFO"

    @property
    def quarantine_dir(self) -> Path:
        """Where the quarantine lives."""
        return self.state_dir / "quarantine"


def load(path: Path) -> ControllerConfig:
    """Read and check the controller's configuration. Relative paths in it start at its own folder.

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
    folder = path.absolute().parent
    config = _convert(raw, path, folder)
    # A default is relative too. What was written is absolute by now and stays what it is.
    config = msgspec.structs.replace(config, fleet_file=folder / config.fleet_file, state_dir=folder / config.state_dir)
    _check_meaning(config, str(path))
    return config


def read_secret(path: Path) -> str:
    """The one line of a secret's file.

    Raises:
        ConfigError: it cannot be read or is empty.
    """
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"the secret cannot be read: {error}") from None
    if not secret:
        raise ConfigError(str(path), "the secret's file is empty", "put the secret on its first line")
    return secret


def _convert(raw: Any, path: Path, folder: Path) -> ControllerConfig:
    def under_the_folder(kind: type[Any], value: Any) -> Any:
        if kind is Path and isinstance(value, str) and value:
            return folder / value
        raise ValueError(f"Expected the path of a file, got {value!r}")

    try:
        return msgspec.convert(raw, ControllerConfig, dec_hook=under_the_folder)
    except msgspec.ValidationError as error:
        problem, _, key = str(error).partition(" - at `$")
        key = key.rstrip("`").lstrip(".")
        raise ConfigError(f"{path}: {key}" if key else str(path), problem, _remedy(problem)) from None


def _remedy(problem: str) -> str:
    unknown = re.search(r"unknown field `(.+)`", problem)
    if unknown is None:
        return ""
    close = difflib.get_close_matches(unknown[1], sorted(_known_keys()), n=1)
    return f"did you mean `{close[0]}`?" if close else "remove it, or see the README for the keys there are"


def _known_keys() -> set[str]:
    sections = (ControllerConfig, BrokerConfig, TlsConfig, InfluxConfig, QuarantineConfig, BatchConfig)
    return {field.encode_name for section in sections for field in msgspec.structs.fields(section)}


def _check_meaning(config: ControllerConfig, place: str) -> None:
    address = urlsplit(config.influxdb.url)
    if address.scheme not in {"http", "https"} or not address.hostname:
        raise ConfigError(
            f"{place}: influxdb.url", f"{config.influxdb.url!r} is not a URL", "write http://127.0.0.1:8086"
        )
    for name in ("broker", "influxdb"):
        section = getattr(config, name)
        if (section.username is None) != (section.password_file is None):
            raise ConfigError(f"{place}: {name}", "username and password_file come together", "give both, or neither")
    tls = config.broker.tls
    if tls is not None and (tls.cert_file is None) != (tls.key_file is None):
        raise ConfigError(f"{place}: broker.tls", "cert_file and key_file come together", "give both, or neither")
    if config.log_level not in LOG_LEVELS:
        raise ConfigError(
            f"{place}: log_level", f"unknown level {config.log_level!r}", "one of " + ", ".join(LOG_LEVELS)
        )
