"""A line that can be broken, servers behind it that go wrong, and a probe before it that says what it makes of that.

For tests in tables: a `Row` is a task, a fault, and the one outcome that is right for it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faulty_servers
from certificates import make_certificates
from lab_probe import LabProbe, lab_probe
from lab_site import FAR, NEAR, far_peer, started

from fleet_controller.lab.emulator import End
from fleet_controller.lab.kernel_shaper import KernelLink
from fleet_controller.lab.namespaces import entered, namespace, run_ip, write_setting
from fleet_controller.lab.profile import LinkProfile
from fleet_controller.lab.services import Dnsmasq
from probe.messages import Result

RATE_BPS = 40_000_000
FAR_V6, NEAR_V6 = "2001:2::1", "2001:2::2"  # RFC 5180's benchmarking range
# On the line, and nobody has them; behind the far end, which throws away, or refuses in one of two ways.
ABSENT, DROPPED, UNREACHABLE, PROHIBITED = "198.18.0.77", "198.18.10.1", "198.18.11.1", "198.18.12.1"
ABSENT_V6, DROPPED_V6, UNREACHABLE_V6 = "2001:2::77", "2001:2:0:a::1", "2001:2:0:b::1"
# Behind a gateway that nobody is; behind nothing that the probe's host knows.
GATEWAY_GONE, NO_ROUTE = "198.18.20.1", "198.18.21.1"
PEER_NAME, DUAL_NAME = "peer.test", "dual.test"
STAMP_PORT, HTTP_PORT, HTTPS_PORT, DNS_PORT = 8862, 8080, 8443, 53
# A fault "in mid-transfer" strikes once so much has passed.
UNDER_WAY_BYTES = 1_000_000
# A router without a way says so to one host five times in a row, and once a second after that; outside a machine's
# first namespace nobody can change it (`ip_error` in Linux). A row has four packets: it waits for as many answers.
_REFUSES = frozenset({UNREACHABLE, PROHIBITED})
_REFUSED_AGAIN_S = 4.0

Fault = Callable[["Site"], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    `expected` is (operation, kind) of a failure, or what the values must have. `strike` is done to the line once the
    measurement is under way (`after_s`, or bytes on the line); everything else goes wrong from the start. `window_s` is
    of a continuous task.
    """

    name: str
    task: str
    expected: tuple[str, str] | dict[str, Any]
    deadline_s: float
    parameters: dict[str, Any] = field(default_factory=dict)
    peer: dict[str, Any] | None = None
    resolver: str | None = None
    strike: Fault | None = None
    after_s: float | None = None
    window_s: float | None = None


class Site:
    """The line, the servers behind it, and a probe before it."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.near = stack.enter_context(namespace("near"))
        self.far = stack.enter_context(namespace("far"))
        self._ends = (
            End(self.near, "wan0", f"{NEAR}/24", f"{NEAR_V6}/64"),
            End(self.far, "line0", f"{FAR}/24", f"{FAR_V6}/64"),
        )
        self._line = KernelLink(LinkProfile(RATE_BPS, RATE_BPS, 0.0), *self._ends)
        self._draw_line()
        made = make_certificates(folder)
        self.ca_file = str(made.ca)
        stack.enter_context(far_peer(self.far, HTTP_PORT, STAMP_PORT))
        stack.enter_context(
            far_peer(self.far, HTTPS_PORT, STAMP_PORT + 1, str(made.good.certificate), str(made.good.key))
        )
        stack.enter_context(started(self.far, [sys.executable, faulty_servers.__file__, FAR, str(folder)]))
        with entered(self.far):
            names = {PEER_NAME: FAR, DUAL_NAME: f"{FAR},{FAR_V6}"}
            resolver = Dnsmasq(folder / "dns", names=names, hosts=(FAR,), port=DNS_PORT, domains=("test",))
            stack.enter_context(resolver)
        self.probe = stack.enter_context(lab_probe(self.near, ca_file=self.ca_file))
        self._refuses_from_s = 0.0

    def _draw_line(self) -> None:
        self._line.start()
        for version in (4, 6):
            # A host sends few refusals a second; a test that follows another one would miss its own.
            write_setting(self.far, f"ipv{version}/{'icmp_' if version == 4 else 'icmp/'}ratelimit", "0")
        write_setting(self.far, "ipv4/ip_forward", "1")
        write_setting(self.far, "ipv6/conf/all/forwarding", "1")
        for kind, *addresses in (
            ("blackhole", DROPPED, DROPPED_V6), ("unreachable", UNREACHABLE, UNREACHABLE_V6), ("prohibit", PROHIBITED),
        ):  # fmt: skip
            for address in addresses:
                run_ip("-n", self.far, "route", "replace", kind, address)
        self._finish_line()

    def _finish_line(self) -> None:
        for version, via in ((4, FAR), (6, FAR_V6)):
            # Three questions for a neighbour in 0.3 s instead of 3: the same answer, sooner.
            write_setting(self.near, f"ipv{version}/neigh/wan0/retrans_time_ms", "100")
            run_ip("-n", self.near, f"-{version}", "route", "replace", "default", "via", via, "dev", "wan0")
        run_ip("-n", self.near, "route", "replace", GATEWAY_GONE, "via", ABSENT, "dev", "wan0")
        # Throwing a route means: as if this table had none.
        run_ip("-n", self.near, "route", "replace", "throw", NO_ROUTE)

    def repair(self) -> None:
        """Whatever was done to the line."""
        if "wan0" not in run_ip("-n", self.near, "link", "show"):
            self._draw_line()
        run_ip("-n", self.near, "link", "set", "wan0", "up")
        run_ip("-n", self.far, "link", "set", "line0", "up")
        # An interface that is switched off keeps its IPv4 addresses and loses the others.
        for end in self._ends:
            run_ip("-n", end.namespace, "address", "replace", str(end.address), "dev", end.device)
            run_ip("-n", end.namespace, "address", "replace", str(end.address_v6), "dev", end.device, "nodad")
        self._finish_line()

    def measure(self, row: Row, *, strikes: bool) -> Result:
        """Measure, and strike in the middle."""
        order: dict[str, Any] = {
            "peer": row.peer,
            "link": {"interface": "wan0", "resolvers": [row.resolver or f"{FAR}:{DNS_PORT}"]},
            "ca_file": self.ca_file,
            "window_s": row.window_s,
        }
        is_refused = row.peer is not None and row.peer.get("host") in _REFUSES
        if is_refused:
            time.sleep(max(0.0, self._refuses_from_s - time.monotonic()))
        before_bytes = self.probe.moved_bytes()
        self.probe.start(row.task, row.parameters, **order)
        if row.strike is not None and strikes:
            _wait_until_under_way(self.probe, before_bytes, row.after_s)
            row.strike(self)
        result = self.probe.finish()
        if is_refused:
            self._refuses_from_s = time.monotonic() + _REFUSED_AGAIN_S
        return result


def _wait_until_under_way(probe: LabProbe, before_bytes: int, after_s: float | None) -> None:
    if after_s is not None:
        time.sleep(after_s)
        return
    deadline_s = time.monotonic() + 10.0
    while probe.moved_bytes() < before_bytes + UNDER_WAY_BYTES:
        assert time.monotonic() < deadline_s, "nothing moved"
        time.sleep(0.01)


def removed(site: Site) -> None:
    """The modem falls off the bus."""
    run_ip("-n", site.near, "link", "del", "wan0")


def switched_off(site: Site) -> None:
    """The interface goes down and stays down."""
    run_ip("-n", site.near, "link", "set", "wan0", "down")


def unaddressed(site: Site) -> None:
    """The modem dials anew, and its address is withdrawn; the interface stays up."""
    run_ip("-n", site.near, "-4", "address", "flush", "dev", "wan0")


def cut(site: Site) -> None:
    """The far end's interface goes down: the near one loses its carrier."""
    run_ip("-n", site.far, "link", "set", "line0", "down")


def peer(**changed: Any) -> dict[str, Any]:
    """Our peer, but for what is changed of it."""
    return {"host": FAR, "http_port": HTTP_PORT, "stamp_port": STAMP_PORT} | changed
