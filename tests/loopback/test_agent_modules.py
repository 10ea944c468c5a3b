"""What a running agent has loaded: on a probe of 512 MB a library is paid for only when it is used."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_rig import AgentRig, Collector, collecting, stamp

from fleet_controller.lab.services import Service
from probe.clock import NS_PER_S
from probe.messages import Action, Command

# What only some measurements need. They load it when they are first made.
SELDOM = {"dns", "h11", "h2", "hpack", "hyperframe", "httpx", "httpcore", "anyio"}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[AgentRig]:
    """A broker and a peer that run, and an agent that will write down each of its imports."""
    made = AgentRig(tmp_path / "rig")
    run = ("-X", "importtime", "-m", "probe.cli", "run", "--config", str(made.config))
    made.agent = Service(made.folder / "agent", [sys.executable, *run], lambda: True)
    try:
        made.broker.start()
        made.peer.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def collector(rig: AgentRig) -> Iterator[Collector]:
    """The controller's stand-in."""
    with collecting(rig.broker.port) as made:
        yield made


def packages(rig: AgentRig) -> set[str]:
    """What the agent has imported (the last column of `importtime`, indented by depth).

    A package's own line comes before those of its modules; a module alone is one whose import failed.
    """
    lines = (line for line in rig.log().splitlines() if line.startswith("import time:"))
    return {line.rpartition("|")[2].strip() for line in lines}


def measure(collector: Collector, action: Action) -> None:
    """Have it measured now, which is reported at once, and wait for its values."""
    expires_unix_ns = time.time_ns() + 60 * NS_PER_S
    collector.command(Command(command_id=action.name, action=action, expires_unix_ns=expires_unix_ns))
    collector.wait_for_result(lambda one: one.command_id == action.name and one.values is not None, action.name)


def test_the_agent_loads_what_it_uses(rig: AgentRig, collector: Collector) -> None:
    """Neither the broker nor round trips take dnspython or an HTTP library; a plain page takes h11 and never h2."""
    collector.instruct(rig.instruction())
    rig.agent.start()
    collector.wait_for_status(lambda one: one.instruction_revision == "one", "the instruction")
    measure(collector, stamp())
    assert "paho" in packages(rig)
    assert packages(rig) & SELDOM == set()
    page = Action(name="page", task="web", peers=("near",), parameters={"path": "/small", "allow_private": True})
    measure(collector, page)
    assert packages(rig) & {"h11", "h2", "hpack", "httpx"} == {"h11"}
