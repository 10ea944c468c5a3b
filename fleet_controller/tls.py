"""The TLS context of a connection to the broker, for the controller and for its commands."""

from __future__ import annotations

import ssl
from pathlib import Path

from fleet_controller.config import TlsConfig
from fleet_controller.errors import ConfigError


def tls_context(config: TlsConfig) -> ssl.SSLContext:
    """TLS 1.2 and later, the server's name checked.

    Raises:
        ConfigError: a file cannot be read or is no PEM file; names it.
    """
    for key, path in (("ca_file", config.ca_file), ("cert_file", config.cert_file), ("key_file", config.key_file)):
        if path is not None:
            _check_readable(f"broker.tls.{key}", path)
    try:
        context = ssl.create_default_context(cafile=str(config.ca_file))
        if config.cert_file is not None:
            context.load_cert_chain(config.cert_file, config.key_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            "broker.tls", f"the files cannot be used: {error}", "they must be PEM, key and certificate of one pair"
        ) from None
    return context


def _check_readable(place: str, path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConfigError(
            f"{place}: {path}", f"cannot be read: {error.strerror}", "put it there, or change the path"
        ) from None
