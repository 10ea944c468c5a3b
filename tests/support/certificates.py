"""Certificates for tests, made by openssl, which every Debian has: good ones, and each kind of bad one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from signing import openssl, sign

_NAMES = "subjectAltName=IP:127.0.0.1,IP:::1,DNS:peer.test"
_OTHER_NAMES = "subjectAltName=IP:192.0.2.1,DNS:other.test"
_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc")


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, PEM files."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Certificates:
    """An authority, and what it signed: for 127.0.0.1, ::1 and `peer.test`; the same, out of date; for others.

    `self_signed` is for the same names, by nobody. `other_ca` signed nothing.
    """

    ca: Path
    other_ca: Path
    good: Pair
    expired: Pair
    wrong_name: Pair
    self_signed: Pair


def make_certificates(folder: Path) -> Certificates:
    """Make them all in `folder`: elliptic curves, a few milliseconds each."""
    for name in ("ca", "other-ca"):
        constraints = ("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign")
        openssl(folder, "req", "-x509", *_new_key(name), "-days", "2", *constraints, "-out", f"{name}.pem")
    openssl(folder, "req", "-x509", *_new_key("self"), "-days", "2", "-addext", _NAMES, "-out", "self.pem")
    return Certificates(
        ca=folder / "ca.pem",
        other_ca=folder / "other-ca.pem",
        good=_signed(folder, "good", _NAMES, 2),
        expired=_signed(folder, "expired", _NAMES, -1),
        wrong_name=_signed(folder, "wrong-name", _OTHER_NAMES, 2),
        self_signed=Pair(folder / "self.pem", folder / "self.key"),
    )


def _signed(folder: Path, name: str, alternative_names: str, days: int) -> Pair:
    (folder / f"{name}.ext").write_text(
        f"{alternative_names}\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n"
    )
    openssl(folder, "req", *_new_key(name), "-out", f"{name}.csr")
    sign(folder, "ca", name, days)
    return Pair(folder / f"{name}.pem", folder / f"{name}.key")


def _new_key(name: str) -> tuple[str, ...]:
    return (*_CURVE, "-keyout", f"{name}.key", "-subj", f"/CN={name}")
