"""`fleet-controller demo`: the whole system on one machine, on lines of known rate and delay.

    main_demo ─► build the lines ─► start the servers ─► apply ─► start controller and probes ─► watch ─► read back

Whatever ends it, nothing stays: a signal only sets a flag, which is looked at between steps, so that everything made
is known to the stack that takes it down; children die with this process, however it dies; and what even that leaves
(namespaces and folders after a SIGKILL) the next start removes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from fleet_controller.config import InfluxConfig
from fleet_controller.demo.files import DATABASE, RESOLVED_NAME, Servers, icmp_allowed, write_files, write_operator_file
from fleet_controller.demo.relay import Relay
from fleet_controller.demo.report import LinkReport, as_json, counts, read_back
from fleet_controller.demo.table import as_table
from fleet_controller.demo.topology import Topology, build, loopback
from fleet_controller.demo.view import Counts, View, Watcher
from fleet_controller.errors import ControllerError, ServiceError, StoreError
from fleet_controller.lab import namespaces
from fleet_controller.lab.namespaces import command_in, entered
from fleet_controller.lab.services import Dnsmasq, Influxd, Mosquitto, Service, answers, free_port
from fleet_controller.store.database import Store
from probe.tasks import TASKS

_TICK_S = 0.25
_COUNT_EVERY_S = 2.0
# Instants are random: now and then a heavy task's first chance comes late.
_LONGER_RATIO = 0.5
_LONGER_STEP_S = 5.0
_APPLY_TIME_OUT_S = 30.0
_LOG_LINES_SHOWN = 8
_EXIT_BY_SIGNAL = 128  # what shells give a program that a signal ended: 128 + its number
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class InterruptedDemoError(ControllerError):
    """A person, or the system, asked the demo to end."""


@dataclass(slots=True)
class Stop:
    """Which signal asked us to end, if any."""

    number: int | None = None

    def go_on(self) -> None:
        """Do nothing, or leave when a signal came.

        Raises:
            InterruptedDemoError: it came.
        """
        if self.number is not None:
            raise InterruptedDemoError(signal.Signals(self.number).name)


@dataclass(frozen=True, slots=True)
class Ways:
    """How this host, outside the demo's namespaces, reaches what runs inside."""

    broker: str
    influxdb_url: str
    operator_file: Path


@dataclass(slots=True)
class Running:
    """What was started, and how to reach it."""

    topology: Topology
    broker: Mosquitto
    influxd: Influxd
    watcher: Watcher
    store: Store
    services: dict[str, Service] = field(default_factory=dict)
    ways: Ways | None = None

    def query(self, influxql: str) -> list[dict[str, object]]:
        """Ask the database."""
        with entered(self.topology.core):
            return self.store.query(influxql)


def main_demo(args: argparse.Namespace) -> int:
    """Run the demo for `args.for_s` seconds; `args.json` and `args.keep` as on the command line.

    What then is missing it waits for, half as long again at most.

    Returns the exit code: 0 when every link has results of every task in the database, 1 when some are missing,
    128 + the signal's number when one ended it before that was known.

    Raises:
        ServiceError: a program is missing or did not start; says which, and which package has it.
    """
    console = Console(stderr=args.json, highlight=False, soft_wrap=True)
    with _signals_noted() as stop:
        try:
            return _run(args, console, stop)
        except InterruptedDemoError:
            console.print("Interrupted; nothing stays behind.")
            return _EXIT_BY_SIGNAL + (stop.number or signal.SIGINT)


@contextmanager
def _signals_noted() -> Iterator[Stop]:
    """Note signals instead of dying of them, until everything is taken down."""
    stop = Stop()

    def note(number: int, _frame: object) -> None:
        stop.number = number

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(args: argparse.Namespace, console: Console, stop: Stop) -> int:
    for name in namespaces.sweep():
        console.print(f"Removed {name}, left by a demo that was killed.")
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix=namespaces.owner_prefix() + "demo-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        running = _start(stack, directory, console, stop)
        _watch(running, console, stop, args.for_s)
        reports = _read_back(running, console, stop, args.for_s * _LONGER_RATIO)
        complete = _tell(reports, console, running, as_json_too=args.json)
        if args.keep:
            _keep(running, console, stop)
    return 0 if complete else 1


def _start(stack: ExitStack, directory: Path, console: Console, stop: Stop) -> Running:
    began_s = time.monotonic()
    topology = _topology(stack, directory, console, stop)
    with entered(topology.core):
        running, servers = _start_servers(stack, directory, topology, stop)
    icmp = topology.core is not None or icmp_allowed()
    if not icmp:
        console.print("ICMP sockets are not allowed to users here (net.ipv4.ping_group_range): STAMP only.")
    files = write_files(directory, topology, servers, icmp=icmp)
    controller = [sys.executable, "-m", "fleet_controller.cli"]
    with entered(topology.core):
        stop.go_on()
        _apply([*controller, "apply", "--config", str(files.controller)])
        serve = [*controller, "serve", "--config", str(files.controller)]
        _begin(stack, running, "controller", Service(directory / "controller", serve, lambda: True))
    for probe in topology.probes:
        stop.go_on()
        run = [sys.executable, "-m", "probe.cli", "run", "--config", str(files.probes[probe.agent_id])]
        service = Service(directory / probe.agent_id, command_in(probe.namespace, run), lambda: True)
        _begin(stack, running, probe.agent_id, service)
    console.print(f"Everything runs after {time.monotonic() - began_s:.1f} s. A look at it from another terminal:")
    _open_ways(stack, running, directory)
    _tell_ways(running, console)
    return running


def _open_ways(stack: ExitStack, running: Running, directory: Path) -> None:
    """Let this host reach broker and database, and write a configuration with which its operator can."""
    core = running.topology.core
    broker = Relay(core, running.broker.host, running.broker.port)
    database = Relay(core, running.influxd.host, running.influxd.port)
    for relay in (broker, database):
        stack.callback(relay.stop)
        relay.start()
    running.ways = Ways(broker.address, f"http://{database.address}", directory / "operator.toml")
    write_operator_file(running.ways.operator_file, broker.address, running.ways.influxdb_url)


def _tell_ways(running: Running, console: Console) -> None:
    ways = running.ways
    if ways is not None:
        console.print(f"  {_own_command()} status --config {ways.operator_file}")
        console.print(f"  MQTT broker: {ways.broker}   InfluxDB: {ways.influxdb_url} (database {DATABASE})")


def _topology(stack: ExitStack, directory: Path, console: Console, stop: Stop) -> Topology:
    lacking = namespaces.available()
    if lacking is None:
        console.print("Two probes in network namespaces, each with an emulated fixed and mobile line.")
        return build(stack, directory, stop.go_on)
    console.print(
        f"No emulated lines ({lacking}): everything runs on the loopback interface, where there is no configured "
        "rate or delay to compare with."
    )
    return loopback()


def _start_servers(stack: ExitStack, directory: Path, topology: Topology, stop: Stop) -> tuple[Running, Servers]:
    """Broker, database, resolver, peer and the view's ears, inside the core."""
    peer_address = topology.peer_address
    broker = Mosquitto(directory / "mosquitto", host=topology.broker_address)
    influxd = Influxd(directory / "influxd", host=topology.broker_address)
    names = {RESOLVED_NAME: ",".join(topology.peer_addresses)}
    resolver = Dnsmasq(directory / "dnsmasq", names=names, hosts=topology.peer_addresses)
    http_port, stamp_port = free_port(peer_address), free_port(peer_address, socket.SOCK_DGRAM)
    ports = ["--http-port", str(http_port), "--stamp-port", str(stamp_port)]
    # Every address of a namespace that is the demo's own, but no other than this one of the host.
    ports += ["--host", peer_address] if topology.core is None else []
    peer_command = [sys.executable, "-m", "probe.cli", "peer", *ports]
    peer = Service(directory / "peer", peer_command, lambda: answers(peer_address, http_port))
    watcher = Watcher(topology.broker_address, broker.port)
    store = Store(InfluxConfig(url=influxd.url, database=DATABASE), TASKS)
    stack.callback(store.close)
    running = Running(topology, broker, influxd, watcher, store)
    for name, service in (("broker", broker), ("database", influxd), ("resolver", resolver), ("peer", peer)):
        stop.go_on()
        _begin(stack, running, name, service)
    store.prepare()
    stack.callback(watcher.stop)
    watcher.start()
    resolvers = tuple(
        f"[{address}]:{resolver.port}" if ":" in address else f"{address}:{resolver.port}"
        for address in topology.peer_addresses
    )
    return running, Servers(broker.port, influxd.url, resolvers, http_port, stamp_port)


def _begin(stack: ExitStack, running: Running, name: str, service: Service) -> None:
    """Start a service that will be stopped, whatever happens."""
    running.services[name] = service
    stack.callback(service.stop)
    service.start()


def _apply(command: list[str]) -> None:
    done = subprocess.run(  # noqa: S603 - our own command line
        command, capture_output=True, text=True, check=False, timeout=_APPLY_TIME_OUT_S, start_new_session=True
    )
    if done.returncode != 0:
        raise ServiceError(f"fleet-controller apply failed:\n{done.stdout}{done.stderr}")


def _watch(running: Running, console: Console, stop: Stop, for_s: float | None) -> None:
    """Show what happens until the time is over (None: until a signal)."""
    end_s = None if for_s is None else time.monotonic() + for_s
    stored, count_at_s = Counts(), 0.0
    with View(console, running.topology.links) as view:
        while end_s is None or time.monotonic() < end_s:
            stop.go_on()
            _check_alive(running, console, is_kept=for_s is None)
            now_s = time.monotonic()
            if now_s >= count_at_s:
                stored, count_at_s = _count(running, stored), now_s + _COUNT_EVERY_S
            view.show(now_s, None if end_s is None else end_s - now_s, running.watcher.running(), stored)
            time.sleep(_TICK_S)


def _read_back(running: Running, console: Console, stop: Stop, longer_s: float) -> list[LinkReport]:
    """Ask the database; while something is missing, let it go on for at most `longer_s`."""
    end_s = time.monotonic() + longer_s
    reports = read_back(running.query, running.topology.links)
    while any(report.missing() for report in reports) and time.monotonic() < end_s:
        console.print("Some of it is still to come.")
        _watch(running, console, stop, min(_LONGER_STEP_S, end_s - time.monotonic()))
        reports = read_back(running.query, running.topology.links)
    return reports


def _count(running: Running, before: Counts) -> Counts:
    try:
        return counts(running.query)
    except StoreError:
        return before  # a view may be late


def _check_alive(running: Running, console: Console, *, is_kept: bool) -> None:
    """A demo that lacks a part cannot be judged; one that is kept running is there to be tried out."""
    for name in [name for name, service in running.services.items() if not service.is_running]:
        service = running.services[name]
        if not is_kept:
            raise ServiceError(f"{name} ended by itself:\n{_end_of(service.log_file)}")
        console.print(f"{name} ended; everything else goes on.")
        del running.services[name]


def _tell(reports: list[LinkReport], console: Console, running: Running, *, as_json_too: bool) -> bool:
    """Print the table or the JSON, and what is missing; tells whether nothing is."""
    if as_json_too:
        print(json.dumps(as_json(reports), indent=2), flush=True)  # noqa: T201 - the answer, for scripts
    else:
        console.print(as_table(reports), soft_wrap=False)
    lacking = [report for report in reports if report.missing()]
    for report in lacking:
        console.print(f"Missing: {report.agent_id} {report.link}: {', '.join(report.missing())}", style="bold")
    for name in dict.fromkeys(["controller", *(report.agent_id for report in lacking)] if lacking else []):
        console.print(f"End of the log of {name}:\n{_end_of(running.services[name].log_file)}", markup=False)
    return not lacking


def _own_command() -> str:
    """How this program was started, as it can be typed again."""
    program = Path(sys.argv[0])
    return str(program) if program.name == "fleet-controller" else "fleet-controller"


def _keep(running: Running, console: Console, stop: Stop) -> None:
    """Leave it running until a signal."""
    console.print("Everything goes on; Ctrl-C ends the demo.")
    _tell_ways(running, console)
    try:
        _watch(running, console, stop, None)
    except InterruptedDemoError:
        console.print("Taking everything down; nothing stays behind.")


def _end_of(log_file: Path) -> str:
    lines = log_file.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-_LOG_LINES_SHOWN:])
