"""A small Internet of namespaces: nodes, cables between them, and Linux routers that can be made silent."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from fleet_controller.lab.namespaces import create, delete, entered, run_ip
from probe.clock import SystemClock
from probe.config import LinkConfig
from probe.links import Link
from probe.messages import Peer
from probe.peer.reflector import Reflector
from probe.tasks.base import AnyTask, Context, Parameters, Usage, Values

# What every node is: a router that says what it has to say at once, from the address that was spoken to, balances by
# ports, and takes its addresses into use without looking for their twins first. Policy 1 would do for a wire; within
# one machine it goes by what the sender's socket was hashed to, which no wire carries. Policy 3 looks at the packet:
# at addresses (0x3), protocol (0x4) and ports (0x30).
SYSCTLS = {
    "net/ipv4/ip_forward": "1",
    "net/ipv4/icmp_ratelimit": "0",
    "net/ipv4/icmp_msgs_per_sec": "100000",
    "net/ipv4/icmp_errors_use_inbound_ifaddr": "1",
    "net/ipv4/fib_multipath_hash_policy": "3",
    "net/ipv4/fib_multipath_hash_fields": "0x37",
    "net/ipv6/conf/default/disable_ipv6": "0",
    "net/ipv6/conf/all/disable_ipv6": "0",
    "net/ipv6/conf/all/forwarding": "1",
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv6/conf/default/accept_ra": "0",
    "net/ipv6/icmp/ratelimit": "0",
    "net/ipv6/fib_multipath_hash_policy": "3",
    "net/ipv6/fib_multipath_hash_fields": "0x37",
}


class Site:
    """Nodes and cables. Cable number k is 10.77.k.0/24 and 2001:db8:77:k::/64: the first end has 1, the second 2."""

    _made = itertools.count()

    def __init__(self) -> None:
        self._number = next(self._made)
        self._nodes: dict[str, str] = {}

    def add(self, *labels: str) -> None:
        """Make nodes."""
        for label in labels:
            self._nodes[label] = create(f"{self._number}-{label}")
            for key, value in SYSCTLS.items():
                self.set(label, key, value)

    def set(self, label: str, key: str, value: str) -> None:
        """Set a sysctl of one node."""
        with entered(self._nodes[label]):
            Path("/proc/sys", key).write_text(value, encoding="ascii")

    def name(self, label: str) -> str:
        """The full name of a node's namespace."""
        return self._nodes[label]

    def ip(self, label: str, line: str) -> None:
        """Run `ip` in a node."""
        run_ip("-n", self._nodes[label], *line.split())

    def cable(self, number: int, first: str, second: str, mtu_bytes: int = 1500) -> None:
        """Lay a cable: device `to-<second>` at the first node, `to-<first>` at the second."""
        near, far = f"to-{second}", f"to-{first}"
        self.ip(first, f"link add {near} mtu {mtu_bytes} type veth peer name {far} netns {self._nodes[second]}")
        for place, device, end in ((first, near, 1), (second, far, 2)):
            self.ip(place, f"link set {device} mtu {mtu_bytes} up")
            self.ip(place, f"addr add 10.77.{number}.{end}/24 dev {device}")
            self.ip(place, f"addr add 2001:db8:77:{number}::{end}/64 dev {device} nodad")

    def route(self, label: str, cable: int, via_cable: int, end: int) -> None:
        """Send what is for one cable's networks to the end of another cable, in both versions of IP."""
        self.ip(label, f"route replace 10.77.{cable}.0/24 via 10.77.{via_cable}.{end}")
        self.ip(label, f"-6 route replace 2001:db8:77:{cable}::/64 via 2001:db8:77:{via_cable}::{end}")

    def default(self, label: str, via_cable: int, end: int) -> None:
        """Send everything else there."""
        self.ip(label, f"route replace default via 10.77.{via_cable}.{end}")
        self.ip(label, f"-6 route replace default via 2001:db8:77:{via_cable}::{end}")

    @contextlib.contextmanager
    def silent(self, label: str) -> Iterator[None]:
        """A router that forwards and says nothing: what it wants to say by ICMP itself goes nowhere."""
        rules = "rule {} pref 10 iif lo ipproto icmp blackhole", "-6 rule {} pref 10 iif lo ipproto ipv6-icmp blackhole"
        for rule in rules:
            self.ip(label, rule.format("add"))
        try:
            yield
        finally:
            for rule in rules:
                self.ip(label, rule.format("del"))

    def close(self) -> None:
        """Remove every node."""
        for name in self._nodes.values():
            delete(name)


@contextlib.contextmanager
def site() -> Iterator[Site]:
    """A site for the length of a block."""
    made = Site()
    try:
        yield made
    finally:
        made.close()


def chain(made: Site, *labels: str) -> None:
    """Nodes in a row, cables 1, 2, … between them, and routes to and fro."""
    made.add(*labels)
    for number, (first, second) in enumerate(itertools.pairwise(labels), start=1):
        made.cable(number, first, second)
    last = len(labels) - 1
    for index, label in enumerate(labels[1:-1], start=1):
        for cable in range(1, last + 1):
            if cable < index:
                made.route(label, cable, index, 1)
            elif cable > index + 1:
                made.route(label, cable, index + 1, 2)
    made.default(labels[0], 1, 2)
    made.default(labels[-1], last, 1)


@contextlib.asynccontextmanager
async def reflector_in(name: str, port: int) -> AsyncIterator[dict[int, Reflector]]:
    """STAMP reflectors of both versions of IP in a namespace."""
    reflectors = {4: Reflector(), 6: Reflector()}
    with entered(name):
        await reflectors[4].start("0.0.0.0", port)  # noqa: S104 - every address of the test's own namespace
        await reflectors[6].start("::", port)
    try:
        yield reflectors
    finally:
        for reflector in reflectors.values():
            await reflector.stop()


async def measure_in(
    name: str, task: AnyTask, parameters: Parameters, peer: Peer, link: LinkConfig, usage: Usage | None = None
) -> Values:
    """Measure once in a namespace, in this process."""
    context = Context(clock=SystemClock(), time_out_s=60, link=Link(link), peer=peer, usage=usage or Usage())
    with entered(name):
        values: Any = await task.measure(context, parameters)
    assert isinstance(values, Values)
    return values
