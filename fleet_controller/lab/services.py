"""Private servers for the demo and the tests: the real mosquitto, influxd and dnsmasq as child processes.

Each lives in a folder of its own on ports of its own, never touches the distribution's services, and dies with the
process that started it.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from fleet_controller.errors import ServiceError

_START_TIME_OUT_S = 30.0
_STOP_TIME_OUT_S = 10.0
_POLL_S = 0.02
_OWN_PID = os.getpid()  # of who starts services
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None, use_errno=True)
# Below those that Linux lends to outgoing connections (`ip_local_port_range`): one of them may be lent before the
# service that it was for has begun to listen. In an order that no other process has.
_PORTS = range(20_000, 30_000)
_ports = itertools.cycle(random.sample(_PORTS, len(_PORTS)))


def free_port(host: str = "127.0.0.1", kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port that nobody uses at this moment, and that this process has not given away yet."""
    return next(port for port in _ports if _is_free(host, port, kind))


def free_dns_port(host: str = "127.0.0.1") -> int:
    """The same, neither over UDP nor over TCP: a resolver needs both."""
    both = (socket.SOCK_DGRAM, socket.SOCK_STREAM)
    return next(port for port in _ports if all(_is_free(host, port, kind) for kind in both))


def _is_free(host: str, port: int, kind: socket.SocketKind) -> bool:
    with socket.socket(socket.AF_INET, kind) as sock:
        try:
            sock.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
    return True


def die_with_parent() -> None:
    """Run in a child before exec: when its parent dies, however it dies, the kernel ends the child too."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != _OWN_PID:
        os.kill(os.getpid(), signal.SIGKILL)  # it died before the kernel knew that we go with it


def find_program(name: str, package: str) -> str:
    """The path of a program, looked for in the system folders too.

    Raises:
        ServiceError: it is not installed; names the Debian package.
    """
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if path is None:
        raise ServiceError(f"{name} is not installed: apt-get install {package}")
    return path


class Service:
    """A server process that is started, killed, started again and stopped."""

    def __init__(self, directory: Path, command: Sequence[str], ready: Callable[[], bool]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.log_file = directory / "log"
        self._command = list(command)
        self._ready = ready
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process is not None else None

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended by itself."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start it and wait until it answers.

        Raises:
            ServiceError: it ended at once or did not answer within 30 s; has the end of its log.
        """
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own command line
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - only sets a flag, started from one thread
                start_new_session=True,  # a Ctrl-C at the terminal is for the demo, which stops its children in order
            )
        deadline = time.monotonic() + _START_TIME_OUT_S
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                tail = self.log_file.read_text(errors="replace")[-800:]
                raise ServiceError(f"{self._command[0]} did not start:\n{tail}")
            time.sleep(_POLL_S)
        return self

    def stop(self) -> None:
        """Ask it to end; insist after 10 s."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it with SIGKILL, as a power cut would."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(_STOP_TIME_OUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def __enter__(self) -> Self:
        """Start it."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()


class Mosquitto(Service):
    """A broker with the durability settings that production uses, on a plain listener.

    `settings` are more lines of mosquitto.conf; a later line wins over ours.
    """

    def __init__(
        self, directory: Path, *, host: str = "127.0.0.1", port: int | None = None, settings: str = ""
    ) -> None:
        self.host, self.port = host, port or free_port(host)
        self.data_directory = directory / "data"
        configuration = directory / "mosquitto.conf"
        program = find_program("mosquitto", "mosquitto")
        super().__init__(directory, [program, "-c", str(configuration)], lambda: answers(self.host, self.port))
        configuration.write_text(MOSQUITTO_CONF.format(host=host, port=self.port, data=self.data_directory) + settings)

    def start(self) -> Self:
        """Start it, with an empty store where there is none."""
        self.data_directory.mkdir(parents=True, exist_ok=True)
        return super().start()

    def wipe(self) -> None:
        """Lose its disk: sessions, queues and retained messages."""
        shutil.rmtree(self.data_directory, ignore_errors=True)


# With mosquitto's defaults a killed broker loses every queued message and every session, and a slow controller all
# beyond 1,000 messages, without an error to anybody. `allow_anonymous` and `user` are for a private broker alone.
MOSQUITTO_CONF = """\
listener {port} {host}
allow_anonymous true
user root
persistence true
persistence_location {data}/
autosave_on_changes true
autosave_interval 1000
max_queued_messages 1000000
max_queued_bytes 2147483648
max_inflight_messages 1000
persistent_client_expiration 60d
set_tcp_nodelay true
log_type error
log_type warning
"""


class Influxd(Service):
    """InfluxDB 1.x on a private port, its data in the service's folder."""

    def __init__(self, directory: Path, *, host: str = "127.0.0.1", port: int | None = None) -> None:
        self.host, self.port = host, port or free_port(host)
        rpc_port = free_port(host)
        configuration = directory / "influxdb.conf"
        program = find_program("influxd", "influxdb")
        super().__init__(directory, [program, "-config", str(configuration)], lambda: answers(self.host, self.port))
        configuration.write_text(INFLUXDB_CONF.format(host=host, port=self.port, rpc=rpc_port, data=directory))

    @property
    def url(self) -> str:
        """Where its HTTP interface is."""
        return f"http://{self.host}:{self.port}"


INFLUXDB_CONF = """\
reporting-disabled = true
bind-address = "{host}:{rpc}"
[meta]
  dir = "{data}/meta"
[data]
  dir = "{data}/data"
  wal-dir = "{data}/wal"
  query-log-enabled = false
[http]
  bind-address = "{host}:{port}"
  log-enabled = false
[monitor]
  store-enabled = false
"""


class Dnsmasq(Service):
    """A resolver that knows only the names given to it and forwards nothing.

    `names` maps a name to its address, or to one of each IP version with a comma between them. Other names within
    `domains` do not exist; names outside are refused.
    """

    def __init__(
        self,
        directory: Path,
        *,
        names: dict[str, str],
        hosts: Sequence[str] = ("127.0.0.1",),
        port: int | None = None,
        domains: Sequence[str] = (),
    ) -> None:
        self.host, self.port = hosts[0], port or free_dns_port(hosts[0])
        command = [
            find_program("dnsmasq", "dnsmasq-base"),
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--bind-interfaces",
            # Both as we are: a change of user or group would clear the death signal, and it would outlive us.
            "--user=root",
            "--group=root",
            "--pid-file",
            f"--port={self.port}",
            *(f"--listen-address={host}" for host in hosts),
            *(f"--host-record={name},{address}" for name, address in names.items()),
            *(f"--local=/{name}/" for name in (*names, *domains)),
        ]
        super().__init__(directory, command, lambda: answers(self.host, self.port))


def answers(host: str, port: int) -> bool:
    """Whether something accepts TCP connections there."""
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False
