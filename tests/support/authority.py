"""A certificate authority for one test run, by openssl, which every Debian has."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


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
        authority._run("req", "-x509", *_KEY, "-addext", "keyUsage=critical,keyCertSign,cRLSign", *words)
        return authority

    @property
    def file(self) -> Path:
        """What a client trusts."""
        return self.folder / "authority.pem"

    def issue(self, name: str, alternatives: str, days: int = 2) -> tuple[Path, Path]:
        """A certificate and its key. `alternatives` as openssl writes them: `DNS:a.test,IP:127.0.0.1`."""
        (self.folder / f"{name}.ext").write_text(f"subjectAltName={alternatives}\nbasicConstraints=CA:FALSE\n")
        self._run("req", *_KEY, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signer = ("-CA", "authority.pem", "-CAkey", "authority.key", "-CAcreateserial", "-days", str(days))
        self._run("x509", "-req", "-in", f"{name}.csr", *signer, "-extfile", f"{name}.ext", "-out", f"{name}.pem")
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"

    def _run(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self.folder, check=True, capture_output=True, timeout=30)
