"""A certificate authority for one test run, by openssl, which every Debian has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from signing import openssl, sign

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
_KEY_IDS = "authorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n"  # Python 3.13 wants them (RFC 5280)


@dataclass(frozen=True, slots=True)
class Authority:
    """Certificates in a folder, all signed by `authority.pem`."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Authority:
        """Found one."""
        folder.mkdir(parents=True, exist_ok=True)
        authority = cls(folder)
        words = ("-days", "2", "-subj", "/O=Lab Authority/CN=lab", "-keyout", "authority.key", "-out", "authority.pem")
        openssl(folder, "req", "-x509", *_KEY, "-addext", "keyUsage=critical,keyCertSign,cRLSign", *words)
        return authority

    @property
    def file(self) -> Path:
        """What a client trusts."""
        return self.folder / "authority.pem"

    def issue(self, name: str, alternatives: str, days: int = 2) -> tuple[Path, Path]:
        """A certificate and its key. `alternatives` as openssl writes them: `DNS:a.test,IP:127.0.0.1`."""
        extensions = f"subjectAltName={alternatives}\nbasicConstraints=CA:FALSE\n{_KEY_IDS}"
        (self.folder / f"{name}.ext").write_text(extensions)
        openssl(self.folder, "req", *_KEY, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        sign(self.folder, "authority", name, days)
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"
