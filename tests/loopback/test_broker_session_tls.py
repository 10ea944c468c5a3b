"""The controller's commands over TLS with client certificates, against the real broker."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_controller.broker_session import BrokerSession, Outgoing
from fleet_controller.config import BrokerConfig, TlsConfig
from fleet_controller.errors import BrokerError, ConfigError
from fleet_controller.lab.services import Mosquitto
from probe.messages import topic

# paho forgets to close the socket of a handshake that failed; the interpreter then closes it and says so.
LEAVES_A_SOCKET = pytest.mark.filterwarnings("ignore:Exception ignored in. <ssl.SSLSocket")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities; certificates of the first for the broker and the controller."""
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("ca", "other-ca"):
        extensions = "basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign"
        words = [word for extension in extensions for word in ("-addext", extension)]
        openssl(folder, "req", "-x509", *new_key(name), "-out", f"{name}.pem", *words)
    for name in ("broker", "controller"):
        (folder / f"{name}.ext").write_text(
            "subjectAltName=IP:127.0.0.1\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n"
        )
        openssl(folder, "req", *new_key(name), "-out", f"{name}.csr")
        signer = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", f"{name}.ext"]
        openssl(folder, "x509", "-req", "-in", f"{name}.csr", *signer, "-days", "2", "-out", f"{name}.pem")
    return folder


@pytest.fixture
def secure_broker(tmp_path: Path, certificates: Path) -> Iterator[Mosquitto]:
    """A broker that asks for a client certificate."""
    files = {"cafile": "ca.pem", "certfile": "broker.pem", "keyfile": "broker.key"}
    lines = "".join(f"{key} {certificates / name}\n" for key, name in files.items())
    with Mosquitto(tmp_path / "secure", settings=lines + "require_certificate true\n") as broker:
        yield broker


def openssl(folder: Path, *words: str) -> None:
    """Run openssl there."""
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True, timeout=30)


def new_key(name: str) -> list[str]:
    """The words for a new key and its subject. Elliptic curves: a key in a millisecond."""
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"]
    return [*curve, "-keyout", f"{name}.key", "-subj", f"/CN={name}"]


def session(broker: Mosquitto, tls: TlsConfig, host: str = "127.0.0.1") -> BrokerSession:
    """A session with these files."""
    return BrokerSession(BrokerConfig(host=host, port=broker.port, tls=tls), "test")


def test_the_right_certificates_are_let_in(secure_broker: Mosquitto, certificates: Path) -> None:
    """And reading and publishing work as without."""
    tls = TlsConfig(
        ca_file=certificates / "ca.pem",
        cert_file=certificates / "controller.pem",
        key_file=certificates / "controller.key",
    )
    with session(secure_broker, tls) as it:
        it.publish([Outgoing(topic("p1", "instruction"), b"x", retain=True)])
        assert it.retained("instruction") == {topic("p1", "instruction"): b"x"}


@LEAVES_A_SOCKET
def test_a_broker_of_another_authority_is_refused(secure_broker: Mosquitto, certificates: Path) -> None:
    """Nothing is said to it."""
    with pytest.raises(BrokerError, match="certificate verify failed"):
        session(secure_broker, TlsConfig(ca_file=certificates / "other-ca.pem")).__enter__()


@LEAVES_A_SOCKET
def test_a_broker_of_another_name_is_refused(secure_broker: Mosquitto, certificates: Path) -> None:
    """Its certificate must name what was asked for."""
    with pytest.raises(BrokerError, match="certificate verify failed"):
        session(secure_broker, TlsConfig(ca_file=certificates / "ca.pem"), host="localhost").__enter__()


def test_without_our_certificate_the_broker_closes(secure_broker: Mosquitto, certificates: Path) -> None:
    """In TLS 1.3 the handshake succeeds first and the refusal comes after: it must not become a time-out."""
    with pytest.raises(BrokerError, match="closed the connection"):
        session(secure_broker, TlsConfig(ca_file=certificates / "ca.pem")).__enter__()


def test_files_that_are_none_are_told(certificates: Path) -> None:
    """Before any connection, and by their names."""
    absent = (certificates / "absent.pem", r"broker\.tls\.ca_file: .*absent\.pem: cannot be read")
    for ca_file, problem in (absent, (certificates / "broker.ext", "broker.tls: the files cannot be used")):
        with pytest.raises(ConfigError, match=problem):
            BrokerSession(BrokerConfig(host="127.0.0.1", tls=TlsConfig(ca_file=ca_file)), "test")
