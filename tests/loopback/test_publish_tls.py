from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mqtt_parts import AGENT_ID, Agent, Desk

from fleet_controller.lab.services import Mosquitto, free_port
from probe import config

DAYS = "2"


def openssl(*arguments: str | Path) -> None:
    """Run openssl, which every Debian has."""
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=30)


def make_authority(folder: Path, name: str) -> None:
    """A certificate authority in two files."""
    openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", DAYS),
        *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
        *("-subj", f"/CN={name}", "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem"),
    )


def make_certificate(folder: Path, name: str, authority: str) -> None:
    """A certificate for `name` by an authority of the folder."""
    request, extensions = folder / f"{name}.csr", folder / f"{name}.ext"
    extensions.write_text("subjectAltName=IP:127.0.0.1\nauthorityKeyIdentifier=keyid\nbasicConstraints=CA:FALSE\n")
    openssl(
        *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}"),
        *("-keyout", folder / f"{name}.key", "-out", request),
    )
    openssl(
        *("x509", "-req", "-in", request, "-days", DAYS, "-extfile", extensions, "-out", folder / f"{name}.pem"),
        *("-CA", folder / f"{authority}.pem", "-CAkey", folder / f"{authority}.key", "-CAcreateserial"),
    )


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with two authorities, the broker's certificate, and the agent's by the right and by a wrong one."""
    folder = tmp_path / "keys"
    folder.mkdir()
    make_authority(folder, "right")
    make_authority(folder, "wrong")
    make_certificate(folder, "broker", "right")
    make_certificate(folder, AGENT_ID, "right")
    make_certificate(folder, "impostor", "wrong")
    return folder


@pytest.fixture
def secure(tmp_path: Path, keys: Path) -> Iterator[tuple[Mosquitto, int]]:
    """A broker that wants certificates on its second port, which is also given."""
    port = free_port()
    settings = (
        f"listener {port} 127.0.0.1\n"
        "allow_anonymous true\n"
        f"cafile {keys}/right.pem\ncertfile {keys}/broker.pem\nkeyfile {keys}/broker.key\n"
        "require_certificate true\nuse_identity_as_username true\n"
    )
    with Mosquitto(tmp_path / "mosquitto", settings=settings) as broker:
        yield broker, port


def settings_of(port: int, ca: Path, certificate: Path | None) -> config.Broker:
    """The agent's [broker] with TLS; `certificate` without its suffix."""
    tls = config.Tls(
        ca_file=str(ca),
        cert_file=None if certificate is None else f"{certificate}.pem",
        key_file=None if certificate is None else f"{certificate}.key",
    )
    return config.Broker(host="127.0.0.1", port=port, tls=tls)


async def test_results_leave_over_tls(secure: tuple[Mosquitto, int], keys: Path, tmp_path: Path) -> None:
    """With the right certificates on both sides everything arrives and is receipted."""
    broker, port = secure
    desk = Desk(broker)
    await desk.until(lambda: desk.ready)
    async with Agent(tmp_path, settings_of(port, keys / "right.pem", keys / AGENT_ID)) as agent:
        agent.add(300, text_bytes=1000)
        await agent.until_empty()
    assert len(desk.seen) == 300
    await asyncio.to_thread(desk.close)


@pytest.mark.parametrize(
    ("ca", "certificate", "remedy"),
    [
        ("wrong.pem", AGENT_ID, "this device's clock"),
        ("right.pem", "impostor", "broker.tls.cert_file and its end date|check broker.tls, and that this port"),
        ("right.pem", None, "broker.tls.cert_file and its end date|check broker.tls, and that this port"),
        ("absent.pem", AGENT_ID, "check the files named in"),
        ("right.pem", "absent", "check the files named in"),
    ],
)
async def test_what_is_wrong_with_the_certificates_is_told_once(
    secure: tuple[Mosquitto, int],
    keys: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    ca: str,
    certificate: str | None,
    remedy: str,
) -> None:
    """However often it is tried, one warning for each thing that is wrong, with what to check; the agent goes on."""
    _, port = secure
    broker = settings_of(port, keys / ca, None if certificate is None else keys / certificate)
    async with Agent(tmp_path, broker) as agent:
        agent.add(1)
        await agent.until(lambda: agent.publisher._attempts >= 4)
        assert not agent.publisher.connected
    told = [record.getMessage() for record in caplog.records if "Cannot connect" in record.getMessage()]
    assert any(word in told[0] for word in remedy.split("|"))
    warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING" and "Cannot connect" in r.getMessage()]
    assert len(warned) == len(set(warned)) <= 2


async def test_a_port_without_tls_is_told(broker: Mosquitto, tmp_path: Path, keys: Path) -> None:
    """TLS to a plain port fails within the handshake's time-out and is tried again, without an end to the agent."""
    async with Agent(tmp_path, settings_of(broker.port, keys / "right.pem", None)) as agent:
        await agent.until(lambda: agent.publisher._attempts >= 2)
        assert not agent.publisher.connected
