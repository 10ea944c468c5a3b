"""`fleet-probe` on the command line: its exit status, its output and its one-line errors."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from agent_rig import AGENT_ID, AgentRig, fleet_probe, serving_peer
from as_user import AS_A_USER

import probe
from fleet_controller.lab.namespaces import command_in, namespace
from fleet_controller.lab.services import Dnsmasq
from probe.messages import Result, encode
from probe.tasks import TASKS


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentRig]:
    """A configuration, and a peer that answers."""
    made = AgentRig(tmp_path_factory.mktemp("cli"))
    try:
        made.peer.start()
        yield made
    finally:
        made.stop()


def once(rig: AgentRig, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`fleet-probe once` with the rig's configuration."""
    return fleet_probe("once", *arguments, "--config", str(rig.config))


def result_of(told: subprocess.CompletedProcess[str]) -> Result:
    """What `--json` printed, held against the contract."""
    assert told.stderr == ""
    return msgspec.json.decode(told.stdout, type=Result)


@pytest.mark.parametrize("task", ["round_trip", "capacity", "dns", "host"])
def test_every_task_can_be_run_once(rig: AgentRig, tmp_path: Path, task: str) -> None:
    """Each task measures from the command line against a real peer, and its result is the contract's."""
    with Dnsmasq(tmp_path / "dns", names={"peer.test": "127.0.0.1"}) as resolver:
        arguments = {
            "round_trip": ["--peer", "127.0.0.1", "--stamp-port", str(rig.stamp_port), "--set", "packets=3"],
            "capacity": ["--peer", f"127.0.0.1:{rig.http_port}", "--set", "mode=capped", "--set", "max_bytes=5000000"],
            "dns": ["--set", "name=peer.test", "--set", f"resolver=127.0.0.1:{resolver.port}", "--link", "mobile0"],
            "host": ["--set", "window_s=0.1"],
        }[task]
        told = once(rig, task, *arguments, "--json")
    assert told.returncode == 0, told.stdout + told.stderr
    result = result_of(told)
    assert result.task == task
    assert result.values
    assert result.link == {"dns": "mobile0", "host": None}.get(task, "fixed0")
    assert (result.schedule, result.command_id, result.cycle_number) == ("command", None, None)
    assert not (rig.state_dir / "spool.db").exists()


def test_once_reads_well(rig: AgentRig) -> None:
    """Without --json the result is a heading and one figure a line."""
    told = once(rig, "round_trip", "--peer", "127.0.0.1", "--stamp-port", str(rig.stamp_port), "--set", "packets=2")
    assert told.returncode == 0
    lines = told.stdout.splitlines()
    assert lines[0] == "round_trip (stamp 4) on fixed0 to given: measured"
    assert "  packets_received = 2" in lines


def test_a_refusal_of_the_network_is_exit_1(rig: AgentRig, tmp_path: Path) -> None:
    """What the network says no to is a result that says so, and status 1."""
    with Dnsmasq(tmp_path / "dns", names={"peer.test": "127.0.0.1"}) as resolver:
        told = once(rig, "dns", "--set", "name=other.peer.test", "--set", f"resolver=127.0.0.1:{resolver.port}")
    assert told.returncode == 1, told.stdout
    assert "failed: resolve name_not_found" in told.stdout


def test_what_cannot_be_measured_is_exit_3(rig: AgentRig, tmp_path: Path) -> None:
    """A link whose interface is absent is not run, and status 3."""
    config = tmp_path / "probe.toml"
    config.write_text(rig.config.read_text().replace('interface = "lo"', 'interface = "absent0"'))
    told = fleet_probe("once", "round_trip", "--peer", "127.0.0.1", "--config", str(config), "--json")
    assert told.returncode == 3
    result = result_of(told)
    assert result.not_run is not None
    assert result.not_run.reason == "link_down"


def test_a_peer_of_the_instruction_has_a_name(rig: AgentRig) -> None:
    """A peer's name is looked up in the instruction that is kept; one outside `targets` is refused."""
    rig.state_dir.mkdir(exist_ok=True)
    kept = rig.state_dir / "instruction.json"
    kept.write_bytes(encode(rig.instruction()))
    try:
        told = once(rig, "round_trip", "--peer", "near", "--set", "packets=2")
        assert told.stdout.startswith("round_trip (stamp 4) on fixed0 to near: measured"), told.stderr
        refused = once(rig, "round_trip", "--peer", "evil")
        assert (refused.returncode, "target_refused" in refused.stdout) == (3, True)
        unknown = once(rig, "round_trip", "--peer", "nobody")
        assert "one of the instruction's: evil, near" in unknown.stderr
        keyless = once(rig, "round_trip", "--peer", "near", "--peer-stamp-key", "x")
        assert keyless.returncode == 2
        assert "--peer-stamp-key x: the configuration has no such key" in keyless.stderr
    finally:
        kept.unlink()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["once", "moon"], f"moon: there is no such task (one of {', '.join(sorted(TASKS))})"),
        (["once", "host", "--link", "x"], "--link x: the configuration has no such link (one of fixed0, mobile0)"),
        (
            ["once", "round_trip"],
            "--peer: round_trip needs a peer (a host[:http_port], or one of the instruction's: none",
        ),
        (["once", "round_trip", "--peer", "nobody"], "--peer nobody: is no known peer and no address"),
        (["once", "round_trip", "--peer", "127.0.0.1:99999"], "99999 is not a port"),
        (["once", "host", "--set", "window_s"], "--set window_s: has no value (write --set window_s=VALUE)"),
        (["once", "host", "--set", "windw_s=1"], "--set windw_s: host has no such parameter (did you mean window_s?)"),
        (["once", "host", "--set", "window_s=soon"], "--set window_s: expected `float`, got `str`"),
        (["once", "host", "--peer", "127.0.0.1"], "--peer: this task asks no peer"),
        (
            ["once", "web"],
            "--set url: no page is named: neither a url nor a peer (give one of them, such as --set url=",
        ),
        (["once", "web", "--set", "url=http://192.0.2.1/", "--set", "ip_version=6"], "--set url: 192.0.2.1 is an IPv4"),
        (
            ["once", "capacity", "--peer", "127.0.0.1", "--set", "mode=capped"],
            "--set max_bytes: mode `capped` needs it (say how many bytes, such as --set max_bytes=25000000)",
        ),
        (
            ["once", "responsiveness", "--peer", "127.0.0.1", "--peer-protocol", "ndt7"],
            "--peer: a peer of protocol ndt7 has no small object",
        ),
        (
            ["once", "round_trip", "--peer", "127.0.0.1", "--peer-stamp-key", "x"],
            "--peer-stamp-key x: the configuration has no such key in [stamp_keys] (one of: none is there yet)",
        ),
        (["once", "ipv6", "--peer", "127.0.0.1"], "--peer: 127.0.0.1 is an IPv4 address, which says nothing of IPv6"),
        (
            ["once", "round_trip", "--peer", "127.0.0.1", "--set", "ip_version=6"],
            "--peer: 127.0.0.1 is an IPv4 address",
        ),
        (["outbox"], "spool.db: there is no spool here"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(rig: AgentRig, arguments: list[str], message: str) -> None:
    """A mistake gives its place and its remedy on one line of stderr, no traceback, and status 2."""
    told = fleet_probe(*arguments, "--config", str(rig.config))
    assert told.returncode == 2
    assert told.stdout == ""
    assert len(told.stderr.splitlines()) == 1
    assert message in told.stderr


@pytest.mark.parametrize("command", [["run"], ["once", "host"], ["check"], ["outbox"]])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no such file (name one with --config)"),
        ("agent_id = [", "is not TOML"),
        ('agent_id = "a"\n[broker]\nhots = "x"\n', "did you mean `host`?"),
    ],
)
def test_a_bad_configuration_is_one_line_and_exit_2(
    tmp_path: Path, command: list[str], text: str | None, message: str
) -> None:
    """Whatever sub-command reads it, a configuration that cannot be used is told in one line."""
    config = tmp_path / "probe.toml"
    if text is not None:
        config.write_text(text)
    told = fleet_probe(*command, "--config", str(config))
    assert told.returncode == 2
    assert len(told.stderr.splitlines()) == 1
    assert message in told.stderr
    assert str(config) in told.stderr


def test_check_finds_what_is_wrong(rig: AgentRig, tmp_path: Path) -> None:
    """A device that is ready is status 0; one with an absent interface or no broker is 1 and says which."""
    good = fleet_probe("check", "--config", str(rig.config), "--json")
    assert good.returncode == 0, good.stdout
    states = {one["what"]: one["state"] for one in json.loads(good.stdout)}
    assert states["configuration"] == states["link fixed0"] == states["targets"] == states["state_dir"] == "ok"
    config = tmp_path / "probe.toml"
    config.write_text(rig.config.read_text().replace('interface = "lo"', 'interface = "absent0"', 1))
    bad = fleet_probe("check", "--online", "--config", str(config))
    assert bad.returncode == 1
    problems = [line for line in bad.stdout.splitlines() if line.startswith("problem")]
    assert [line.split()[1] for line in problems] == ["link", "broker"]
    assert "absent0 is absent or down" in problems[0]


def test_check_reaches_the_broker(rig: AgentRig) -> None:
    """With --online the broker is connected to, without taking the agent's place there."""
    with rig.broker:
        told = fleet_probe("check", "--online", "--config", str(rig.config))
    assert told.returncode == 0, told.stdout
    assert f"127.0.0.1 port {rig.broker.port} answers" in told.stdout


def test_help_has_examples() -> None:
    """Help and version answer without a configuration; no sub-command is wrong use."""
    assert "examples:" in fleet_probe("--help").stdout
    assert "exit status:" in fleet_probe("once", "--help").stdout
    assert fleet_probe("--version").stdout == f"fleet-probe {probe.__version__}\n"
    assert fleet_probe().returncode == 2


def test_help_is_light() -> None:
    """What only the agent needs is not imported for --help."""
    program = (
        "import sys\nfrom probe import cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'asyncio', 'paho', 'apscheduler', 'httpx', 'dns', 'sqlite3'} & set(sys.modules)\n"
        "sys.exit(str(sorted(heavy)) if heavy else 0)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert told.returncode == 0, told.stderr


def test_a_reader_that_has_gone_is_no_complaint(rig: AgentRig) -> None:
    """`fleet-probe once … | head`: whatever it could not write any more, it ends well and says nothing of it."""
    words = [sys.executable, "-m", "probe.cli", "once", "host", "--set", "window_s=0.1", "--config", str(rig.config)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == b""
    assert child.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_peer_says_its_ports_and_stops(number: signal.Signals) -> None:
    """`peer` on free ports says which they are, and a signal ends it with status 0."""
    with serving_peer() as (serving, port):
        assert port > 0
        os.kill(serving.pid, number)
        _, stderr = serving.communicate(timeout=20)
    assert serving.returncode == 0, stderr
    assert "Traceback" not in stderr


def test_a_peer_that_cannot_open_a_port_says_which_and_what_to_do() -> None:
    """In use, of another host, no port at all: the port or the option, and the remedy, in one line; status 2."""
    with (
        socket.create_server(("127.0.0.1", 0)) as http,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stamp,
    ):
        stamp.bind(("127.0.0.1", 0))
        http_port, stamp_port = http.getsockname()[1], stamp.getsockname()[1]
        for arguments, said in (
            (
                f"--host 127.0.0.1 --stamp-port 0 --http-port {http_port}",
                f"HTTP port {http_port} of 127.0.0.1: .*-http-p",
            ),
            (f"--http-port 0 --stamp-port {stamp_port}", f"STAMP port {stamp_port} of every address: .*--stamp-port"),
            ("--http-port 0 --host 192.0.2.1", "of 192.0.2.1: .*no address of this host: see `ip address`"),
            ("--http-port 0 --host peer.test", "of peer.test: .*no address of this host"),
            ("--http-port 70000", "argument --http-port: 70000 is not a port: 1 to 65535"),
        ):
            told = fleet_probe("peer", *arguments.split())
            assert told.returncode == 2
            assert re.search(said, told.stderr.splitlines()[-1]), told.stderr
            assert "Traceback" not in told.stderr


@pytest.mark.needs_root
def test_a_low_port_is_for_root_and_a_user_is_told_so() -> None:
    """862 and 80 are below 1024: without a privilege the remedy says which there are."""
    arguments = [sys.executable, "-m", "probe.cli", "peer", "--host", "127.0.0.1", "--http-port", "80"]
    with namespace("low") as where:  # a host can make low ports everybody's, and containers do; a new namespace has not
        command = command_in(where, [*AS_A_USER, *arguments])
        told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert told.returncode == 2, told.stderr
    assert "cannot open HTTP port 80 of 127.0.0.1: Permission denied (low ports are root's" in told.stderr


def test_a_state_that_cannot_be_made_is_told(rig: AgentRig, tmp_path: Path) -> None:
    """`run` and a heavy `once` without a usable state folder say so in one line."""
    (tmp_path / "file").write_text("not a folder")
    config = tmp_path / "probe.toml"
    config.write_text(rig.config.read_text().replace(str(rig.state_dir), str(tmp_path / "file" / "state")))
    for arguments in (["run"], ["once", "capacity", "--peer", "127.0.0.1"]):
        told = fleet_probe(*arguments, "--config", str(config))
        assert told.returncode == 2
        assert told.stderr.splitlines()[-1].startswith(f"fleet-probe {arguments[0]}: state_dir: ")
        assert "Traceback" not in told.stderr
    assert AGENT_ID in config.read_text()
