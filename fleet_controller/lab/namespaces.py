"""Network namespaces: the demo's and the lab's own piece of Internet, out of the way of the host's.

Every name begins with the process that made it (`pf-<pid>-<start>-`), so that what a killed process left behind is
known for what it is and removed by the next one. Needs root and iproute2.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from fleet_controller.errors import ServiceError

_NETNS_DIRECTORY = Path("/var/run/netns")
_CLONE_NEWNET = 0x40000000  # linux/sched.h
_COMMAND_TIME_OUT_S = 20.0
_OWNED = re.compile(r"^pf-([0-9]+)-([0-9]+)-")
_START_TIME_FIELD = 19  # proc(5), /proc/pid/stat: field 22, counted from the one after the command's name
_LIBC = ctypes.CDLL(None, use_errno=True)
# Inside a namespace: ICMP sockets for every group, and answers accepted on the link that asked although the main
# route to the peer is another one (RFC 3704 strict filtering would drop them).
_SYSCTLS = {
    "net/ipv4/ping_group_range": "0 2147483647",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    "net/ipv6/conf/default/disable_ipv6": "1",
}


def run_ip(*arguments: str) -> str:
    """Run iproute2's `ip`, in a session of its own: a Ctrl-C at the terminal does not cut it in the middle.

    Raises:
        ServiceError: it is missing or refused; has its words.
    """
    try:
        done = subprocess.run(  # noqa: S603 - our own command line
            ["ip", *arguments],  # noqa: S607 - where it stands depends on the distribution
            capture_output=True,
            text=True,
            check=False,
            timeout=_COMMAND_TIME_OUT_S,
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServiceError(f"ip {' '.join(arguments)}: {error}") from error
    if done.returncode != 0:
        raise ServiceError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def owner_prefix(pid: int | None = None) -> str:
    """How names made by a process begin. The start time tells it from a later process with the same number."""
    pid = os.getpid() if pid is None else pid
    return f"pf-{pid}-{_start_ticks(pid) or 0}-"


def create(label: str) -> str:
    """Make a namespace with its loopback up; gives its full name.

    Raises:
        ServiceError: not allowed, or it exists.
    """
    name = owner_prefix() + label
    run_ip("netns", "add", name)
    try:
        run_ip("-n", name, "link", "set", "dev", "lo", "up")
        with entered(name):
            _write_sysctls()
    except (OSError, ServiceError):
        delete(name)
        raise
    return name


def _write_sysctls() -> None:
    for key, value in _SYSCTLS.items():
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6 has nothing to switch off
            Path("/proc/sys", key).write_text(value, encoding="ascii")


def use_ipv6(name: str, device: str) -> None:
    """Switch IPv6 on for one device of a namespace: with the addresses that it is given and no others.

    Nothing is solicited or advertised, so that the line carries what is measured and nothing else.

    Raises:
        OSError: there is no such namespace or device, or the kernel has no IPv6.
    """
    settings = {"addr_gen_mode": "1", "accept_ra": "0", "router_solicitations": "0", "disable_ipv6": "0"}
    with entered(name):
        for key, value in settings.items():
            Path("/proc/sys/net/ipv6/conf", device, key).write_text(value, encoding="ascii")


def write_setting(name: str, key: str, value: str) -> None:
    """Set a sysctl below `net` in a namespace, such as `ipv4/tcp_congestion_control`.

    Raises:
        OSError: there is no such namespace or setting, or it does not take the value.
    """
    with entered(name):
        Path("/proc/sys/net", key).write_text(value, encoding="ascii")


def delete(name: str) -> None:
    """Remove a namespace; one that is gone already is no error.

    Raises:
        ServiceError: it is there and cannot be removed.
    """
    if exists(name):
        try:
            run_ip("netns", "delete", name)
        except ServiceError:
            if exists(name):  # else another one was faster
                raise


def exists(name: str) -> bool:
    """Whether there is a namespace of this name."""
    return (_NETNS_DIRECTORY / name).exists()


@contextlib.contextmanager
def namespace(label: str) -> Iterator[str]:
    """A namespace for the length of a block; gives its full name."""
    name = create(label)
    try:
        yield name
    finally:
        delete(name)


@contextlib.contextmanager
def entered(name: str | None) -> Iterator[None]:
    """Let the calling thread, and what it starts, live in another namespace for the length of a block.

    Sockets stay in the namespace that they were opened in. /sys goes on showing the old one: a program that reads it
    is started by `command_in`. With None nothing changes.

    Raises:
        OSError: there is no such namespace, or entering it is not allowed.
    """
    if name is None:
        yield
        return
    with Path("/proc/thread-self/ns/net").open("rb") as home, (_NETNS_DIRECTORY / name).open("rb") as there:
        _set_namespace(there.fileno())
        try:
            yield
        finally:
            _set_namespace(home.fileno())


def _set_namespace(descriptor: int) -> None:
    """setns(2); `os.setns` needs Python 3.12."""
    if _LIBC.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


def command_in(name: str | None, command: Sequence[str]) -> list[str]:
    """The command line that runs `command` in a namespace, with a /sys that shows it. With None, as it is."""
    return list(command) if name is None else ["ip", "netns", "exec", name, *command]


def run_in(name: str | None, command: Sequence[str], *, time_out_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run a command in a namespace to its end and give what it said; its exit status is for the caller to judge.

    Raises:
        OSError: the program is missing.
        subprocess.TimeoutExpired: it did not end in time and was killed.
    """
    return subprocess.run(  # noqa: S603 - our own command line
        command_in(name, command), capture_output=True, text=True, check=False, timeout=time_out_s
    )


def available() -> str | None:
    """None when this process can make namespaces and TUN devices; else what is missing, for a person."""
    if os.geteuid() != 0:
        return "not running as root"
    if shutil.which("ip") is None:
        return "iproute2 is not installed (apt-get install iproute2)"
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        return f"/dev/net/tun cannot be used: {error.strerror}"
    return None


def remove_own() -> None:
    """Remove every namespace and temporary folder that this process made: for one that ends in the middle of things."""
    prefix = owner_prefix()
    for path in _paths(_NETNS_DIRECTORY):
        if path.name.startswith(prefix):
            delete(path.name)
    for path in _paths(Path(tempfile.gettempdir())):
        if path.name.startswith(prefix) and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def sweep() -> list[str]:
    """Remove namespaces and temporary folders of processes that are gone; gives their names."""
    removed = []
    for path in _leftovers(_NETNS_DIRECTORY) if os.geteuid() == 0 else ():
        delete(path.name)
        removed.append(path.name)
    for path in _leftovers(Path(tempfile.gettempdir())):
        if path.stat().st_uid == os.geteuid() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path.name)
    return removed


def _paths(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []


def _leftovers(directory: Path) -> list[Path]:
    return [path for path in _paths(directory) if _is_orphan(path.name)]


def _is_orphan(name: str) -> bool:
    match = _OWNED.match(name)
    return match is not None and _start_ticks(int(match[1])) != int(match[2])


def _start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks after boot; absent when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[_START_TIME_FIELD])
