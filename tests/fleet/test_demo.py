"""The demo as a person runs it: its answer, its exit code, and that nothing of it stays, however it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from as_user import AS_A_USER

from fleet_controller.demo.report import TASKS
from fleet_controller.lab.services import die_with_parent

_NETNS = Path("/var/run/netns")


@dataclass
class Demo:
    """A running demo. Every process of it carries the mark in its environment."""

    process: subprocess.Popen[str]
    mark: str
    prefix: str

    def processes(self) -> dict[int, str]:
        """The demo's processes by id, with their command lines."""
        found = {}
        for path in Path("/proc").iterdir():
            if path.name.isdigit() and int(path.name) != self.process.pid and self._is_marked(path):
                found[int(path.name)] = _command(path)
        return found

    def namespaces(self) -> list[str]:
        """The demo's network namespaces."""
        return _named(_NETNS, self.prefix)

    def folders(self) -> list[str]:
        """The demo's temporary folders."""
        return _named(Path(tempfile.gettempdir()), self.prefix)

    def left(self) -> list[Any]:
        """Whatever there is of it. Killed children take a moment to go."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            found = [*self.processes().items(), *self.namespaces(), *self.folders()]
            if not found:
                return []
            time.sleep(0.1)
        return found

    def wait_for(self, seen: Callable[[], object], what: str) -> None:
        """Wait for a moment of the start-up, or of the run."""
        deadline = time.monotonic() + 60
        while not seen():
            assert time.monotonic() < deadline, f"not seen: {what}"
            assert self.process.poll() is None, f"ended before: {what}"
            time.sleep(0.02)

    def _is_marked(self, path: Path) -> bool:
        try:
            return self.mark.encode() in (path / "environ").read_bytes()
        except OSError:
            return False


def _command(path: Path) -> str:
    try:
        return (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def _named(directory: Path, prefix: str) -> list[str]:
    return [path.name for path in directory.iterdir() if path.name.startswith(prefix)] if directory.exists() else []


@pytest.fixture
def start() -> Iterator[Callable[..., Demo]]:
    """Start a demo in a session of its own; killed at the end if the test did not get that far."""
    started: list[Demo] = []

    def begin(*arguments: str, before: tuple[str, ...] = ()) -> Demo:
        mark = f"PF_TEST_MARK={uuid.uuid4()}"
        process = subprocess.Popen(
            [*before, sys.executable, "-m", "fleet_controller.cli", "demo", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PF_TEST_MARK": mark.partition("=")[2]},
            preexec_fn=die_with_parent,  # noqa: PLW1509 - one thread
            start_new_session=True,
        )
        demo = Demo(process, mark, f"pf-{process.pid}-")
        started.append(demo)
        return demo

    yield begin
    for demo in started:
        demo.process.kill()
        demo.process.communicate()


@pytest.mark.timeout(180)
def test_the_demo_measures_what_the_lines_are(start: Callable[..., Demo]) -> None:
    """Every link has every task in the database, near its configured figures; then nothing is left."""
    demo = start("--for", "60", "--json")
    out, err = demo.process.communicate(timeout=170)
    assert demo.process.returncode == 0, err
    links = json.loads(out)["links"]
    assert len(links) == 4
    for link in links:
        assert set(link) == {"agent_id", "link", "configured", "measured", "samples"}
        assert set(link["samples"]) == set(TASKS)
        assert all(link["samples"].values()), link
        # Wide bounds for a busy machine: what the demo is for is in the bounds of its acceptance, run by hand.
        assert link["measured"]["rtt_s"] == pytest.approx(link["configured"]["rtt_s"], abs=0.001)
        for way in ("download_bps", "upload_bps"):
            assert link["measured"][way] == pytest.approx(link["configured"][way], rel=0.08), link
    assert demo.left() == []


@pytest.mark.timeout(180)
def test_without_root_the_demo_runs_on_the_loopback_and_says_so(start: Callable[..., Demo]) -> None:
    """As a user: everything measured and stored, nothing configured to compare with, nothing left."""
    demo = start("--for", "60", "--json", before=AS_A_USER)
    out, err = demo.process.communicate(timeout=170)
    assert demo.process.returncode == 0, err
    assert "not running as root" in err
    for link in json.loads(out)["links"]:
        assert set(link["configured"].values()) == {None}
        assert all(value > 0 for value in link["measured"].values()), link
        assert all(link["samples"].values()), link
    assert demo.left() == []


MOMENTS: dict[str, Callable[[Demo], object]] = {
    "the folder is there": lambda demo: demo.folders(),
    "the first namespace is there": lambda demo: demo.namespaces(),
    "the database is starting": lambda demo: any("influxd" in command for command in demo.processes().values()),
    "the first probe runs": lambda demo: any("probe.cli run" in command for command in demo.processes().values()),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_moment_leaves_nothing(start: Callable[..., Demo], moment: str, number: signal.Signals) -> None:
    """Ctrl-C or SIGTERM in the middle of the start-up or of the run: told by the exit code, and all is gone."""
    demo = start("--for", "60")
    demo.wait_for(lambda: MOMENTS[moment](demo), moment)
    demo.process.send_signal(number)
    out, err = demo.process.communicate(timeout=60)
    assert demo.process.returncode == 128 + number, err
    assert "nothing stays behind" in out
    assert "Traceback" not in err
    assert demo.left() == []


def test_many_signals_do_not_disturb_the_taking_down(start: Callable[..., Demo]) -> None:
    """An impatient person presses Ctrl-C again and again: still nothing is left."""
    demo = start("--for", "60")
    demo.wait_for(lambda: MOMENTS["the first probe runs"](demo), "the first probe")
    while demo.process.poll() is None:
        demo.process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    _, err = demo.process.communicate(timeout=60)
    assert "Traceback" not in err
    assert demo.left() == []


def test_what_a_killed_demo_leaves_the_next_one_removes(start: Callable[..., Demo]) -> None:
    """SIGKILL: the children die at once; namespaces and folder wait for the next start, which sweeps them."""
    killed = start("--for", "60")
    killed.wait_for(lambda: MOMENTS["the first probe runs"](killed), "the first probe")
    killed.process.kill()
    killed.process.communicate(timeout=10)
    deadline = time.monotonic() + 10
    while killed.processes():
        assert time.monotonic() < deadline, killed.processes()
        time.sleep(0.05)
    assert killed.namespaces()
    following = start("--for", "60")
    following.wait_for(following.namespaces, "its namespaces")
    assert killed.left() == []
    following.process.send_signal(signal.SIGINT)
    following.process.communicate(timeout=60)
    assert following.left() == []


def test_a_server_that_dies_ends_the_demo_with_its_last_words(start: Callable[..., Demo]) -> None:
    """A broken demo says what broke instead of waiting for results that cannot come."""
    demo = start("--for", "60")
    demo.wait_for(lambda: MOMENTS["the first probe runs"](demo), "the first probe")
    broker = next(pid for pid, command in demo.processes().items() if "mosquitto" in command)
    os.kill(broker, signal.SIGKILL)
    _, err = demo.process.communicate(timeout=60)
    assert demo.process.returncode not in {0, 1}
    assert "broker ended by itself" in err
    assert demo.left() == []


def ipv6_states(url: str) -> dict[tuple[str, str], str]:
    """What the last result of each line, by probe and link, says of IPv6."""
    question = urllib.parse.quote('SELECT LAST("state") FROM "ipv6" GROUP BY "agent_id", "link"')
    with urllib.request.urlopen(f"{url}/query?db=fleet&q={question}", timeout=10) as answer:  # noqa: S310 - the demo's own address
        series = json.load(answer)["results"][0].get("series", [])
    return {(one["tags"]["agent_id"], one["tags"]["link"]): one["values"][0][1] for one in series}


@pytest.mark.timeout(180)
def test_kept_running_it_tells_addresses_that_answer(start: Callable[..., Demo]) -> None:
    """With --keep, InfluxDB and `fleet-controller status` answer on this host until Ctrl-C; all goes on being measured.

    IPv6 works on every line. A run too short to be complete says 1.
    """
    demo = start("--for", "1", "--keep")
    assert demo.process.stdout is not None
    said = ""
    while "Ctrl-C ends" not in said:
        line = demo.process.stdout.readline()
        assert line, said
        said += line
    assert "Some of it is still to come" in said
    address = re.search(r"InfluxDB: (http://127\.0\.0\.1:[0-9]+)", said)
    assert address is not None
    with urllib.request.urlopen(f"{address[1]}/query?q=SHOW+DATABASES", timeout=10) as answer:  # noqa: S310 - the demo's own address
        assert "fleet" in answer.read().decode()
    operator_file = re.search(r"fleet-controller status --config (\S+)", said)
    assert operator_file is not None
    status = [sys.executable, "-m", "fleet_controller.cli", "status", "--json", "--config", operator_file[1]]
    answered = subprocess.run(status, capture_output=True, text=True, check=False, timeout=30)
    agents = {agent["agent_id"]: agent["state"] for agent in json.loads(answered.stdout)["agents"]}
    assert agents.keys() == {"demo-ha-noi-1", "demo-can-tho-1"}
    demo.wait_for(lambda: len(ipv6_states(address[1])) >= 4, "a result of IPv6 from each line")
    assert set(ipv6_states(address[1]).values()) == {"works"}
    demo.process.send_signal(signal.SIGINT)
    demo.process.communicate(timeout=60)
    assert demo.process.returncode == 1
    assert demo.left() == []
