"""A probe that stood still must not publish a rate that says something about itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from probe.peer.http_peer import HttpPeer

CONFIG = """\
agent_id = "still-1"
state_dir = "state"
[broker]
host = "127.0.0.1"
[targets]
networks = ["127.0.0.0/8"]
[[links]]
name = "lo"
interface = "lo"
source_address = "127.0.0.1"
"""
NOT_RUN = 3  # the exit code of `once`
# Longer than a stop must be to be noticed, shorter than the time-outs of the streams.
STOPPED_S = 3.0


def test_a_host_that_stood_still_gives_no_capacity(tmp_path: Path) -> None:
    """Stopped for seconds in mid-transfer (a suspend, a stuck card): `not_run(interrupted)`, not a slow line."""
    (tmp_path / "probe.toml").write_text(CONFIG)
    peer = HttpPeer()
    peer.start("127.0.0.1", 0)
    command = [
        sys.executable,
        "-m",
        "probe.cli",
        "once",
        "capacity",
        "--json",
        "--config",
        str(tmp_path / "probe.toml"),
    ]
    try:
        with subprocess.Popen(
            [*command, "--peer", f"127.0.0.1:{peer.port}"], stdout=subprocess.PIPE, text=True
        ) as process:
            while not peer.connections:
                time.sleep(0.005)
            os.kill(process.pid, signal.SIGSTOP)
            time.sleep(STOPPED_S)
            os.kill(process.pid, signal.SIGCONT)
            said, _ = process.communicate(timeout=60)
    finally:
        peer.stop()
    assert process.returncode == NOT_RUN
    assert json.loads(said)["not_run"]["reason"] == "interrupted"
