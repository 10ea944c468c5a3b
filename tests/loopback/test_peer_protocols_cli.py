"""Peers with TLS and other protocols from the command line: `fleet-probe peer` with a certificate, `once` to each."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from agent_rig import AgentRig, fleet_probe, serving_peer
from certificates import Certificates, make_certificates
from librespeed_server import LibreSpeedServer

from probe.messages import FailureKind, Operation, Result

FEW_BYTES = ("--set", "mode=capped", "--set", "max_bytes=5000000", "--json")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Good ones and bad ones."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def trusting(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[Path]:
    """A configuration that trusts our authority, by a path relative to its own folder."""
    rig = AgentRig(tmp_path_factory.mktemp("cli"))
    (rig.config.parent / "peers.pem").write_bytes(certificates.ca.read_bytes())
    rig.config.write_text(rig.config.read_text() + '\n[peer_tls]\nca_file = "peers.pem"\n')
    yield rig.config
    rig.stop()


def result_of(told: subprocess.CompletedProcess[str]) -> Result:
    """What `--json` printed."""
    assert told.stderr == ""
    return msgspec.json.decode(told.stdout, type=Result)


def test_a_peer_with_a_certificate_is_measured_over_tls(trusting: Path, certificates: Certificates) -> None:
    """`peer --tls-certificate --tls-key` speaks TLS, `once --peer-tls` says by which cipher; plain it is refused."""
    pair = certificates.good
    files = ("--tls-certificate", str(pair.certificate), "--tls-key", str(pair.key))
    with serving_peer(*files) as (serving, port):
        where = ("once", "capacity", "--config", str(trusting), "--peer", f"127.0.0.1:{port}", *FEW_BYTES)
        measured, refused = fleet_probe(*where, "--peer-tls"), fleet_probe(*where)
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(20) == 0
    values = result_of(measured).values
    assert values is not None
    assert values["tls_version"] in {"TLSv1.2", "TLSv1.3"}
    assert values["tls_cipher"]
    assert refused.returncode == 1


def test_a_librespeed_server_is_measured_once(trusting: Path) -> None:
    """By its address, with the protocol's own paths."""
    with LibreSpeedServer() as server:
        told = fleet_probe(
            *("once", "capacity", "--config", str(trusting), "--peer", f"127.0.0.1:{server.port}"),
            *("--peer-protocol", "librespeed", *FEW_BYTES),
        )
    assert result_of(told).values, told.stdout
    assert server.requests[0].startswith("GET /backend/garbage.php?")


def test_a_certificate_of_nobody_is_refused(trusting: Path, certificates: Certificates) -> None:
    """Status 1, (tls, certificate_invalid)."""
    with LibreSpeedServer("go", certificates.self_signed) as server:
        told = fleet_probe(
            *("once", "capacity", "--config", str(trusting), "--peer", f"127.0.0.1:{server.port}"),
            *("--peer-protocol", "librespeed", "--peer-tls", *FEW_BYTES),
        )
    assert told.returncode == 1
    failure = result_of(told).failure
    assert failure is not None
    assert (failure.operation, failure.kind) == (Operation.TLS, FailureKind.CERTIFICATE_INVALID)


@pytest.mark.parametrize("files", [("--tls-certificate",), ("--tls-certificate", "--tls-key")])
def test_a_peer_without_a_usable_certificate_does_not_start(tmp_path: Path, files: tuple[str, ...]) -> None:
    """One line, status 2: a half of the pair, or files that are none."""
    (tmp_path / "x.pem").write_text("no certificate")
    words = [word for file in files for word in (file, str(tmp_path / "x.pem"))]
    told = fleet_probe("peer", "--http-port", "0", "--stamp-port", "0", *words)
    assert told.returncode == 2
    assert told.stderr.splitlines()[-1].startswith("fleet-probe peer: ")
    assert "Traceback" not in told.stderr
