"""Signing a certificate request with an authority's key, for any time: openssl's `x509` knows no time that is over."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

_SETTINGS = """
[ca]
default_ca = lab
[lab]
database = {name}.index
new_certs_dir = .
rand_serial = yes
default_md = sha256
policy = any
[any]
commonName = supplied
"""


def sign(folder: Path, authority: str, name: str, days: int) -> None:
    """Make `name.pem` out of `name.csr` and `name.ext`, signed by `authority.pem`.

    It is valid until `days` from now, and began a day before now or, with days below 0, before its end.
    """
    now = datetime.now(UTC)
    ends = now + timedelta(days=days)
    begins = min(now, ends) - timedelta(days=1)
    (folder / f"{name}.cnf").write_text(_SETTINGS.format(name=name))
    (folder / f"{name}.index").write_text("")
    openssl(
        folder,
        *("ca", "-batch", "-notext", "-config", f"{name}.cnf", "-cert", f"{authority}.pem"),
        *("-keyfile", f"{authority}.key", "-startdate", _said(begins), "-enddate", _said(ends)),
        *("-extfile", f"{name}.ext", "-in", f"{name}.csr", "-out", f"{name}.pem"),
    )


def openssl(folder: Path, *words: str) -> None:
    """Run it there."""
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True, timeout=30)


def _said(moment: datetime) -> str:
    return f"{moment:%Y%m%d%H%M%SZ}"
