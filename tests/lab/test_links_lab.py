"""A link is bound for real: what is measured over it can leave by no other way."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

# Runs inside the namespace: opens a socket on each link, sends to an address that only `other0` has a route to.
INSIDE = """
import socket, sys
from probe.config import LinkConfig
from probe.errors import NotRunError
from probe.links import Link
wanted = sys.argv[1]
link = Link(LinkConfig(name="l", interface=sys.argv[2], source_address=sys.argv[3] or None))
try:
    sock = link.socket(4, socket.SOCK_DGRAM)
    print("source", sock.getsockname()[0])
    sock.sendto(b"x", (wanted, 9))
    print("sent")
except NotRunError as error:
    print(error)
except OSError as error:
    print("refused", error.errno)
print("counters", link.counters() is not None, link.is_up())
"""


def run(*command: str) -> str:
    """What a command printed."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


@pytest.fixture
def namespace() -> Iterator[str]:
    """A namespace with two links: `line0` (198.18.0.1/30) and `other0` (198.18.1.1/30 with the default route)."""
    name = f"pf-links-{os.getpid()}"
    run("ip", "netns", "add", name)
    try:
        # Without IPv6 the kernel sends nothing of its own, so that a packet counted is a packet of the test.
        run("ip", "netns", "exec", name, "sysctl", "-q", "-w", "net.ipv6.conf.default.disable_ipv6=1")
        for device, address in (("line0", "198.18.0.1/30"), ("other0", "198.18.1.1/30")):
            run("ip", "-n", name, "link", "add", device, "type", "veth", "peer", "name", f"{device}-far")
            run("ip", "-n", name, "link", "set", f"{device}-far", "up")
            run("ip", "-n", name, "addr", "add", address, "dev", device)
            run("ip", "-n", name, "link", "set", device, "up")
        run("ip", "-n", name, "route", "add", "default", "via", "198.18.1.2")
        yield name
    finally:
        run("ip", "netns", "del", name)


def inside(namespace: str, target: str, interface: str, source: str = "") -> str:
    """What the program says when it runs in the namespace."""
    return run("ip", "netns", "exec", namespace, sys.executable, "-c", INSIDE, target, interface, source)


def sent_packets(namespace: str, device: str) -> int:
    """How many packets left by a device."""
    text = run("ip", "netns", "exec", namespace, "cat", f"/sys/class/net/{device}/statistics/tx_packets")
    return int(text)


def test_traffic_leaves_by_the_link_alone(namespace: str) -> None:
    """With the default route elsewhere, a bound socket still uses its own device and source address."""
    before = sent_packets(namespace, "other0")
    assert "source 198.18.0.1\nsent" in inside(namespace, "198.18.0.2", "line0")
    assert sent_packets(namespace, "other0") == before


def test_a_target_without_a_route_on_the_link_is_not_reached_by_another(namespace: str) -> None:
    """No silent fallback: where the link has no route, the kernel's own answer is what comes back."""
    before = sent_packets(namespace, "other0")
    answer = inside(namespace, "198.18.200.1", "line0")
    # A device-bound socket treats an address without a route as on-link: it goes out of line0, or nowhere.
    assert "sent" in answer or f"refused {101}" in answer
    assert sent_packets(namespace, "other0") == before


def test_a_link_that_is_down_is_not_run(namespace: str) -> None:
    """An interface that is switched off gives `link_down`, not another line's figures."""
    run("ip", "-n", namespace, "link", "set", "line0", "down")
    assert "not run: link_down: interface line0 is absent or down" in inside(namespace, "198.18.0.2", "line0")


def test_a_link_that_is_absent_is_not_run(namespace: str) -> None:
    """A modem that fell off the bus gives `link_down` and no counters."""
    answer = inside(namespace, "198.18.0.2", "wwan7")
    assert "not run: link_down: interface wwan7 is absent or down" in answer
    assert "counters False False" in answer


def test_a_link_without_an_address_is_not_run(namespace: str) -> None:
    """An interface that waits for its DHCP lease is not a line yet."""
    run("ip", "-n", namespace, "addr", "flush", "dev", "line0")
    assert "has no IPv4 address" in inside(namespace, "198.18.0.2", "line0")


def test_an_address_of_another_interface_is_refused(namespace: str) -> None:
    """A source address that the host does not have is told, not replaced."""
    assert "cannot bind to line0" in inside(namespace, "198.18.0.2", "line0", "203.0.113.9")


def test_binding_needs_no_privilege() -> None:
    """The agent runs as a plain user and binds all the same (Linux 5.7 and later)."""
    program = (
        "import os, socket\n"
        "from probe.config import LinkConfig\n"
        "from probe.links import Link\n"
        "os.setuid(65534)\n"
        "print(Link(LinkConfig(name='l', interface='lo')).socket(4, socket.SOCK_DGRAM).getsockname()[0])"
    )
    assert run(sys.executable, "-W", "ignore", "-c", program).strip() == socket.inet_ntoa(b"\x7f\0\0\1")
