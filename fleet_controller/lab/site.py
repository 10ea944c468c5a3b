"""A piece of Internet for one probe: its line, and behind it a peer, a resolver and, on request, nginx.

    with Site("4g_edge") as site:
        result = site.run("round_trip", {"packets": 100})

The probe's side and the other side are network namespaces, so nothing here touches the host's network. Needs root.
Addresses are those of RFC 2544 and RFC 5180: no host of the Internet has them.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

import msgspec

from fleet_controller.errors import ServiceError
from fleet_controller.lab import namespaces
from fleet_controller.lab.emulator import EmulatedLink, End
from fleet_controller.lab.kernel_shaper import KernelLink
from fleet_controller.lab.namespaces import command_in, entered, namespace, run_ip, use_ipv6, write_setting
from fleet_controller.lab.nginx import Nginx
from fleet_controller.lab.profile import LinkProfile
from fleet_controller.lab.profiles import find_profile
from fleet_controller.lab.services import Dnsmasq, Service, answers, die_with_parent
from probe.messages import Instruction, Peer, Result, encode

LINK: Final = "wan0"  # the name of the probe's link and of its interface
FAR_DEVICE: Final = "line0"
NEAR_V4, GATEWAY_V4, PEER_V4 = "198.18.0.2", "198.18.0.1", "198.18.255.1"
NEAR_V6, GATEWAY_V6, PEER_V6 = "2001:2::2", "2001:2::1", "2001:2:0:ff::1"
PEER: Final = "peer"
NGINX: Final = "nginx"
PEER_NAME, NGINX_NAME = "peer.test", "nginx.test"
PEER_HTTP_PORT, NGINX_HTTP_PORT, STAMP_PORT, DNS_PORT = 80, 8080, 862, 53
AGENT_ID: Final = "lab"
TARGET_NETWORKS: Final = ("198.18.0.0/15", "2001:2::/48")
_EXIT_USAGE: Final = 2
TIME_OUT_S: Final = 180.0
# What the far end may have in flight: the product of 1 Gbit/s and 0.1 s and a margin. The near end keeps Linux's own.
_FAR_BUFFER_BYTES: Final = "4096 131072 33554432"
_numbers = itertools.count()

_PROBE_CONFIG = """\
agent_id = "{agent_id}"
state_dir = "{state}"
[broker]
host = "{broker}"
[[links]]
name = "{link}"
interface = "{link}"
resolvers = ["{resolver}"]
[targets]
networks = {networks}
domains = ["test"]
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the probe: its result, what CPU time its process took from start to end, and when it ran.

    `began_ns` and `ended_ns` are of CLOCK_MONOTONIC and include the start of the interpreter.
    """

    result: Result
    cpu_s: float
    began_ns: int
    ended_ns: int


class Site:
    """The line of a profile and what is behind it, for the length of a `with` block.

    `shaper="kernel"` makes a line that is only rate and buffer with a token bucket, without delay. `nginx=True` adds
    nginx at `nginx.test`, port 8080. `congestion_control` is that of both ends; CUBIC is what a Raspberry Pi has.
    `near` and `far` are the full names of the two namespaces.
    """

    def __init__(
        self,
        profile: str | LinkProfile,
        *,
        shaper: Literal["emulator", "kernel"] = "emulator",
        nginx: bool = False,
        seed: int = 1,
        congestion_control: str = "cubic",
    ) -> None:
        self.profile = find_profile(profile) if isinstance(profile, str) else profile
        self.near = self.far = ""
        self.directory = Path()
        self.peers: dict[str, Peer] = {}
        self._shaper, self._seed, self._with_nginx = shaper, seed, nginx
        self._congestion_control = congestion_control
        self._stack = ExitStack()
        self._link: EmulatedLink | KernelLink | None = None

    def __enter__(self) -> Self:
        """Build it.

        Raises:
            ServiceError: not root, a program is missing, or something did not start; says what.
            ConfigError: the kernel cannot shape this profile.
        """
        lacking = namespaces.available()
        if lacking is not None:
            raise ServiceError(f"the lab makes network namespaces: {lacking}")
        with ExitStack() as stack:
            self._build(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take it down. A Ctrl-C waits until that is done."""
        with _uninterrupted():
            self._stack.close()

    @property
    def link(self) -> EmulatedLink | KernelLink:
        """The line: it tells what rate it enforced, and can be killed, stopped and started again."""
        if self._link is None:
            raise RuntimeError("the site is not built: use it in a `with` block")
        return self._link

    @property
    def config_file(self) -> Path:
        """The probe's configuration."""
        return self.directory / "probe.toml"

    @property
    def delay_s(self) -> float:
        """The round-trip delay that the line enforces: the kernel's has none."""
        return self.profile.delay_s if self._shaper == "emulator" else 0.0

    def add_peer(self, peer: Peer) -> None:
        """Tell the probe of one more peer; a `Site` knows `peer` and, with nginx, `nginx`."""
        self.peers[peer.name] = peer
        instruction = Instruction(agent_id=AGENT_ID, revision="lab", issued_unix_ns=0, peers=tuple(self.peers.values()))
        (self.directory / "state" / "instruction.json").write_bytes(encode(instruction))

    def run(
        self,
        task: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        peer: str | None = PEER,
        time_out_s: float = TIME_OUT_S,
    ) -> Result:
        """Measure once with `fleet-probe once`; see `measure`."""
        return self.measure(task, parameters, peer=peer, time_out_s=time_out_s).result

    def measure(
        self,
        task: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        peer: str | None = PEER,
        time_out_s: float = TIME_OUT_S,
    ) -> Run:
        """Measure once with `fleet-probe once` in the near namespace. A failure is a result.

        `peer` is one of `peers`, an address or a name, or None for a task without one.

        Raises:
            ServiceError: the probe refused its arguments or crashed; has its words.
        """
        command = [*self.probe_command("once", task), "--config", str(self.config_file), "--json"]
        command += ["--peer", peer] if peer is not None else []
        for key, value in (parameters or {}).items():
            command += ["--set", f"{key}={json.dumps(value)}"]
        began_ns, cpu_before_s = time.monotonic_ns(), _children_cpu_s()
        done = self.run_near(command, time_out_s=time_out_s)
        ended_ns, cpu_s = time.monotonic_ns(), _children_cpu_s() - cpu_before_s
        if done.returncode == _EXIT_USAGE or not done.stdout:
            raise ServiceError(f"fleet-probe once {task}: {done.stderr.strip() or f'exit {done.returncode}'}")
        return Run(msgspec.json.decode(done.stdout, type=Result), cpu_s, began_ns, ended_ns)

    @staticmethod
    def probe_command(*arguments: str) -> list[str]:
        """The command line of `fleet-probe` of this very installation."""
        return [sys.executable, "-m", "probe.cli", *arguments]

    def run_near(self, command: list[str], *, time_out_s: float = TIME_OUT_S) -> subprocess.CompletedProcess[str]:
        """Run any program where the probe is, to its end; it dies with this process, however that dies.

        Its exit status is for the caller to judge: 1, with a word of `ip` about it, also when there is no such program.

        Raises:
            ServiceError: it did not end in time.
        """
        try:
            return subprocess.run(  # noqa: S603 - our own command line
                command_in(self.near, command),
                capture_output=True,
                text=True,
                check=False,
                timeout=time_out_s,
                preexec_fn=die_with_parent,
                start_new_session=True,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ServiceError(f"{command[0]}: {error}") from error

    def start_far(self, service: Service) -> Service:
        """Start one more server behind the line; it is stopped with the site."""
        self._stack.callback(service.stop)
        with entered(self.far):
            return service.start()

    def _build(self, stack: ExitStack) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix=namespaces.owner_prefix() + "lab-"))
        stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
        (self.directory / "state").mkdir()
        number = next(_numbers)
        self.near = stack.enter_context(namespace(f"near{number}"))
        self.far = stack.enter_context(namespace(f"far{number}"))
        self._set_up_tcp()
        self._link = self._line()
        stack.callback(self._link.stop)
        self._link.start()
        self._route()
        for service in self._services():
            stack.callback(service.stop)
            with entered(self.far):
                service.start()
        self._configure_probe()

    def _set_up_tcp(self) -> None:
        """The same TCP whatever the host's settings are, and no memory of the run before."""
        for name in (self.near, self.far):
            write_setting(name, "ipv4/tcp_no_metrics_save", "1")
        write_setting(self.far, "ipv4/tcp_wmem", _FAR_BUFFER_BYTES)
        write_setting(self.far, "ipv4/tcp_rmem", _FAR_BUFFER_BYTES)

    def _line(self) -> EmulatedLink | KernelLink:
        v4, v6 = self.profile.ipv4 != "absent", self.profile.ipv6 != "absent"
        near = End(self.near, LINK, f"{NEAR_V4}/30" if v4 else None, f"{NEAR_V6}/64" if v6 else None)
        far = End(self.far, FAR_DEVICE, f"{GATEWAY_V4}/30" if v4 else None, f"{GATEWAY_V6}/64" if v6 else None)
        if self._shaper == "kernel":
            return KernelLink(self.profile, near, far)
        return EmulatedLink(self.directory / "line", self.profile, near, far, seed=self._seed)

    def _route(self) -> None:
        """The peer's addresses are behind the gateway, as those of the Internet are.

        The routes name the congestion control: a namespace may choose its own only among those that the host allows
        to everybody, a route may name any.
        """
        how = ("congctl", self._congestion_control)
        if self.profile.ipv4 != "absent":
            run_ip("-n", self.far, "address", "add", f"{PEER_V4}/32", "dev", "lo")
            run_ip("-n", self.near, "route", "add", "default", "via", GATEWAY_V4, "dev", LINK, *how)
            run_ip("-n", self.far, "route", "add", f"{NEAR_V4}/32", "dev", FAR_DEVICE, *how)
        if self.profile.ipv6 != "absent":
            use_ipv6(self.far, "lo")
            run_ip("-n", self.far, "address", "add", f"{PEER_V6}/128", "dev", "lo", "nodad")
            run_ip("-n", self.near, "-6", "route", "add", "default", "via", GATEWAY_V6, "dev", LINK, *how)
            run_ip("-n", self.far, "-6", "route", "add", f"{NEAR_V6}/128", "dev", FAR_DEVICE, *how)

    def _addresses(self) -> list[str]:
        """The peer's, the one that works first."""
        states = ((self.profile.ipv4, PEER_V4), (self.profile.ipv6, PEER_V6))
        present = [(state != "works", address) for state, address in states if state != "absent"]
        return [address for _, address in sorted(present, key=lambda one: one[0])]

    def _services(self) -> Iterator[Service]:
        addresses = self._addresses()
        peer = self.probe_command("peer", "--http-port", str(PEER_HTTP_PORT), "--stamp-port", str(STAMP_PORT))
        yield Service(self.directory / "peer", peer, lambda: answers(addresses[0], PEER_HTTP_PORT))
        names = dict.fromkeys((PEER_NAME, NGINX_NAME), ",".join(addresses))
        yield Dnsmasq(self.directory / "dnsmasq", names=names, hosts=addresses, port=DNS_PORT, domains=("test",))
        if self._with_nginx:
            root = self.directory / "www"
            root.mkdir()
            yield Nginx(self.directory / "nginx", root, hosts=addresses, port=NGINX_HTTP_PORT)

    def _configure_probe(self) -> None:
        resolver = self._addresses()[0]
        text = _PROBE_CONFIG.format(
            agent_id=AGENT_ID,
            state=self.directory / "state",
            broker=resolver,
            link=LINK,
            resolver=resolver,
            networks=json.dumps(TARGET_NETWORKS),
        )
        self.config_file.write_text(text, encoding="utf-8")
        self.add_peer(Peer(name=PEER, host=PEER_NAME, http_port=PEER_HTTP_PORT, stamp_port=STAMP_PORT))
        if self._with_nginx:
            self.add_peer(Peer(name=NGINX, host=NGINX_NAME, http_port=NGINX_HTTP_PORT, stamp_port=STAMP_PORT))


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let a Ctrl-C wait: half a site taken down would stay. Only the main thread has a say in that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []
    before: Callable[[int, Any], Any] | int | None = signal.signal(
        signal.SIGINT, lambda number, _: asked.append(number)
    )
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        os.kill(os.getpid(), signal.SIGINT)
