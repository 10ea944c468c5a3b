"""A probe in a network namespace: measures what it is told to, by the agent's own path, and says what came of it.

One process for many measurements, because starting one costs more than most of them take. Orders come as JSON lines on
standard input (`Order`), results leave as JSON lines on standard output (`probe.messages.Result`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from fleet_controller.lab.namespaces import entered
from fleet_controller.lab.services import die_with_parent
from probe.clock import SystemClock
from probe.config import LinkConfig, Targets
from probe.links import Link
from probe.measure.exclusion import HeavyLock
from probe.measure.invocation import Instructed, Invocation
from probe.measure.measurer import Measurer
from probe.measure.rows import LastResult
from probe.measure.targets import TargetGuard
from probe.messages import Action, ClockReading, ClockState, Peer, Progress, Result, encode
from probe.tasks import TASKS

_LINK = "line"
# Below the 2 s beyond which the agent takes a step for one: nothing but the measurement itself can notice it.
STEP_NS = 1_700_000_000
_STAMPS = {(socket.SOL_SOCKET, 64), (socket.SOL_SOCKET, 65)}  # asm-generic/socket.h
_WAIT_S = 60.0


class Order(msgspec.Struct, frozen=True):
    """One measurement: the task and its parameters, the link, the peer, and whom to trust of it."""

    task: str
    parameters: dict[str, Any] = {}
    link: dict[str, Any] = msgspec.field(default_factory=lambda: {"interface": "wan0"})
    peer: dict[str, Any] | None = None
    ca_file: str | None = None
    # Of a continuous task.
    window_s: float | None = None


class LabProbe:
    """The process, as the test sees it."""

    def __init__(self, process: subprocess.Popen[str], where: str) -> None:
        self._process, self._where = process, where
        self.pid = process.pid

    def start(self, task: str, parameters: dict[str, Any] | None = None, **order: Any) -> None:
        """Begin to measure."""
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(Order(task, parameters or {}, **order)).decode() + "\n")
        self._process.stdin.flush()

    def finish(self) -> Result:
        """What came of it."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the probe died: {self._process.wait(5)}"
        return msgspec.json.decode(line, type=Result)

    def measure(self, task: str, parameters: dict[str, Any] | None = None, **order: Any) -> Result:
        """One whole measurement."""
        self.start(task, parameters, **order)
        return self.finish()

    def moved_bytes(self, interface: str = "wan0") -> int:
        """What the interface has received and sent so far; 0 when it is absent."""
        with entered(self._where):
            lines = Path("/proc/thread-self/net/dev").read_text(encoding="ascii").splitlines()
        for line in lines:
            name, _, figures = line.partition(":")
            if name.strip() == interface:
                words = figures.split()
                return int(words[0]) + int(words[8])
        return 0


@contextlib.contextmanager
def lab_probe(where: str, *before: str, ca_file: str | None = None) -> Iterator[LabProbe]:
    """A probe in a namespace; `before` is a command line that starts it, such as one that limits it.

    `ca_file` has the authorities that the host trusts, for what it measures of the Internet at large.

    Its /sys stays the host's, because a control group can be seen there only.
    """
    enter = ["nsenter", f"--net=/var/run/netns/{where}"]
    command = [*before, *enter, sys.executable, "-W", "error", __file__]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | ({} if ca_file is None else {"SSL_CERT_FILE": ca_file}),
        preexec_fn=die_with_parent,  # noqa: PLW1509 - only sets a flag, started from one thread
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        try:
            yield LabProbe(process, where)
        finally:
            process.kill()


class Rig:
    """One agent's measurer for all measurements over the same link, as an agent has it."""

    def __init__(self, link: dict[str, Any], ca_file: str | None) -> None:
        self._outbox = LastResult()
        self._measurer = Measurer(
            agent_id="lab",
            clock=SystemClock(),
            links={_LINK: Link(LinkConfig(name=_LINK, **link))},
            outbox=self._outbox,
            guard=TargetGuard(Targets(networks=("0.0.0.0/0", "::/0"), domains=("test", "invalid"))),
            heavy=HeavyLock(Path(os.devnull)),
            on_progress=_ignore,
            peer_ca_file=ca_file,
        )

    async def measure(self, order: Order) -> Result:
        """Measure once."""
        peer = None if order.peer is None else Peer(**({"name": "peer"} | order.peer))
        self._measurer.instructed = Instructed(peers={} if peer is None else {peer.name: peer})
        peers = () if peer is None else (peer.name,)
        action = Action(name="lab", task=order.task, peers=peers, parameters=order.parameters)
        link = _LINK if TASKS[order.task].needs_link else None
        deadline_s = SystemClock().monotonic_s() + (order.window_s or _WAIT_S)
        invocation = Invocation("lab", link, (action,), deadline_s, is_continuous=order.window_s is not None)
        await self._measurer.run(invocation)
        assert self._outbox.result is not None
        return self._outbox.result


def _ignore(_: Progress) -> None:
    """Nobody watches."""


def _vouch(_: SystemClock) -> ClockReading:
    """What an unsynchronised clock may not judge is not what the lab is about."""
    return ClockReading(state=ClockState.SYNCHRONISED)


class SteppedClock:
    """Wall time as this process learns it, where the machine's own clock must not be touched: a signal steps it.

    Both ways in which a program can learn it are shifted: the clock, and the kernel's stamps of packets.
    """

    def __init__(self) -> None:
        self._shift_ns = 0
        self._time_ns, self._time, self._receive = time.time_ns, time.time, socket.socket.recvmsg

    def install(self) -> None:
        """Put it in the place of the real one."""
        signal.signal(signal.SIGUSR1, self._step)
        replaced: Any = (time, socket.socket)
        replaced[0].time_ns = lambda: self._time_ns() + self._shift_ns
        replaced[0].time = lambda: self._time() + self._shift_ns / 1e9
        replaced[1].recvmsg = lambda sock, *arguments: self._shifted(self._receive(sock, *arguments))

    def _step(self, *_: object) -> None:
        """Forward, and back."""
        self._shift_ns = STEP_NS if self._shift_ns == 0 else 0

    def _shifted(self, received: Any) -> Any:
        """What recvmsg gave, with its stamps (SO_TIMESTAMPNS_NEW, SO_TIMESTAMPING_NEW) moved."""
        content, ancillary, *rest = received
        moved = [
            (level, kind, self._moved(stamp) if (level, kind) in _STAMPS else stamp) for level, kind, stamp in ancillary
        ]
        return (content, moved, *rest)

    def _moved(self, stamp: bytes) -> bytes:
        seconds, nanoseconds = struct.unpack_from("=qq", stamp)
        if seconds == 0:
            return stamp
        seconds, nanoseconds = divmod(seconds * 10**9 + nanoseconds + self._shift_ns, 10**9)
        return struct.pack("=qq", seconds, nanoseconds) + stamp[16:]


def main() -> None:
    """Serve orders until there are no more."""
    clock: Any = SystemClock
    clock.reading = _vouch  # whatever keeps the time of the test's machine
    SteppedClock().install()
    rigs: dict[bytes, Rig] = {}
    print("ready", flush=True)  # noqa: T201 - the protocol
    for line in sys.stdin:
        order = msgspec.json.decode(line, type=Order)
        key = msgspec.json.encode([order.link, order.ca_file])
        rig = rigs.setdefault(key, Rig(order.link, order.ca_file))
        print(encode(asyncio.run(rig.measure(order))).decode(), flush=True)  # noqa: T201 - the protocol


if __name__ == "__main__":
    main()
