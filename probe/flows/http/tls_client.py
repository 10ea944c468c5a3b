"""The client's side of TLS: whom it trusts, and what it learned of the server.

Strict always: the certificate must lead to an authority of this device's store and name whom we meant (RFC 9525). An
answer that came over an unverified connection would say nothing about who gave it.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from probe.clock import NS_PER_S, Clock
from probe.errors import MeasurementFailedError, NotRunError
from probe.flows.faults import failed
from probe.messages import ClockState, NotRunReason, Operation

_S_PER_DAY: Final = 86_400
_ISSUER_CHARACTERS_MAX: Final = 64
# openssl/x509_vfy.h: X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED.
_DATED_ERRORS: Final = frozenset({9, 10})


@dataclass(frozen=True, slots=True)
class TlsFacts:
    """What the handshake settled, of a certificate that was verified.

    `certificate_days_left` counts from `now_ns` of the wall clock; `issuer` is the authority's organisation or name.
    """

    version: str
    alpn: str | None
    certificate_days_left: float | None
    issuer: str | None


def client_context() -> ssl.SSLContext:
    """The one context of this process: TLS 1.2 or later, names checked, the system's authorities.

    It is read anew when the store's file was changed. `SSL_CERT_FILE` and `SSL_CERT_DIR` name another store, as with
    every program that uses OpenSSL. No session is ever resumed, so every handshake is a full one.

    Raises:
        NotRunError: this device has no authorities, and would call every certificate invalid (`tool_missing`).
    """
    paths = ssl.get_default_verify_paths()
    # typeshed knows no absent path, but one that does not exist is absent.
    file, folder = cast("str | None", paths.cafile), cast("str | None", paths.capath)
    if file is None and (folder is None or not os.listdir(folder)):  # noqa: PTH208 - names are all that is wanted
        problem = "this device trusts no certificate authority: apt-get install ca-certificates"
        raise NotRunError(NotRunReason.TOOL_MISSING, problem)
    return _context(file, Path(file).stat().st_mtime_ns if file is not None else 0)


@functools.lru_cache(maxsize=1)  # the store is 1.4 MB in memory and takes 30 ms of a server's time to read
def _context(file: str | None, changed_ns: int) -> ssl.SSLContext:  # noqa: ARG001 - what makes it another store
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies certificate and name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_default_certs()
    return context


def facts(connection: ssl.SSLObject, now_ns: int) -> TlsFacts:
    """What a finished handshake settled."""
    certificate = connection.getpeercert() or {}
    return TlsFacts(
        version=connection.version() or "",
        alpn=connection.selected_alpn_protocol(),
        certificate_days_left=_days_left(certificate, now_ns),
        issuer=_issuer(certificate),
    )


def handshake_failed(error: BaseException, clock: Clock) -> MeasurementFailedError | NotRunError:
    """What a failed handshake means: the network's word, unless it is our own clock that is wrong.

    A probe that believes it is 1970 would call every certificate not yet valid.
    """
    dated = isinstance(error, ssl.SSLCertVerificationError) and error.verify_code in _DATED_ERRORS
    if dated and clock.reading().state is not ClockState.SYNCHRONISED:
        return NotRunError(NotRunReason.CLOCK, f"no certificate can be judged by an unsynchronised clock: {error}")
    failure = failed(Operation.TLS, error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return MeasurementFailedError(Operation.TLS, failure.failure.kind, error.verify_message)
    return failure


def sni_of(host: str) -> str:
    """The name to verify, without the root's dot. OpenSSL sends none in the clear when it is an address (RFC 6066)."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host.rstrip(".")


def _days_left(certificate: Mapping[str, Any], now_ns: int) -> float | None:
    not_after = certificate.get("notAfter")
    if not_after is None:
        return None
    return (ssl.cert_time_to_seconds(not_after) - now_ns / NS_PER_S) / _S_PER_DAY


def _issuer(certificate: Mapping[str, Any]) -> str | None:
    names = {name: value for part in certificate.get("issuer", ()) for name, value in part}
    issuer = names.get("organizationName") or names.get("commonName")
    if issuer is None:
        return None
    return "".join(letter for letter in str(issuer) if letter.isprintable())[:_ISSUER_CHARACTERS_MAX]
