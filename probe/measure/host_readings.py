"""What the kernel says of the host at one moment. Read twice around every measurement, so it must cost little.

A reading takes six small files of /proc and /sys: below 0.1 ms on a PC, some 0.4 ms on a Pi. What a host does not have
is absent. Files are read without Python's file objects, which cost as much again.
"""

from __future__ import annotations

import functools
import os
import time
from dataclasses import dataclass
from pathlib import Path

from probe.flows.bulk.core_time import ended_wait_ns, thread_wait_ns

LOOPBACK = "lo"  # no line ends there: everything of the host passes, at no negotiated speed

_PROC_STAT = "/proc/stat"
# Of the calling thread, not of the process: a thread may have entered another network namespace.
_NET_DEV = "/proc/thread-self/net/dev"
_CPU_PRESSURE = "/proc/pressure/cpu"
_MEMORY_PRESSURE = "/proc/pressure/memory"
_OWN_CGROUPS = Path("/proc/self/cgroup")
_CGROUP_MOUNT = Path("/sys/fs/cgroup")
_SYS_NET = "/sys/class/net"
# Raspberry Pi firmware, as the kernel shows it (drivers/firmware/raspberrypi.c).
_THROTTLED = "/sys/devices/platform/soc/soc:firmware/get_throttled"
_HAS_FIRMWARE = os.path.exists(_THROTTLED)  # noqa: PTH110 - a string, as it is read
# Bits 0-3: under-voltage, frequency capped, throttled, soft temperature limit, all of this moment.
_THROTTLED_NOW = 0b1111
# The lines of the cores stand first: this holds those of 64 cores, without the long interrupt counters after them.
_READ_BYTES = 8192
# A page of interfaces at a time; a probe has a handful, and 64 pages are two thousand.
_NET_DEV_READS_MAX = 64
_NS_PER_US = 1000
_BPS_PER_MBPS = 1_000_000


@dataclass(frozen=True, slots=True)
class CoreTicks:
    """What one core did since boot, in ticks of 10 ms (proc(5)). `busy` has everything but idle and iowait."""

    busy: int
    total: int
    softirq: int = 0
    steal: int = 0


@dataclass(frozen=True, slots=True)
class Traffic:
    """What an interface moved since it appeared, both ways, link-layer headers included."""

    received_bytes: int
    received_packets: int
    sent_bytes: int
    sent_packets: int


@dataclass(frozen=True, slots=True)
class Throttling:
    """Accounting periods of the own cgroup's CPU quota in which it ran, and those in which it was stopped."""

    periods: int
    throttled: int


@dataclass(frozen=True, slots=True)
class Reading:
    """The host at one moment of the monotonic clock; times are totals since boot, or since the thread began.

    `cpu_ns` is the CPU time of this process. How long somebody was ready and had no core: `wait_ns` the calling thread,
    `workers_wait_ns` the threads of bulk measurements that have ended, `cpu_pressure_ns` any task of the host.
    `memory_stall_ns` is how long all of the host waited for memory.
    """

    at_ns: int
    cores: tuple[CoreTicks, ...] = ()
    cpu_ns: int = 0
    wait_ns: int | None = None
    workers_wait_ns: int | None = None
    cpu_pressure_ns: int | None = None
    memory_stall_ns: int | None = None
    throttling: Throttling | None = None
    firmware_throttled: bool | None = None
    traffic: Traffic | None = None


def read(interface: str | None) -> Reading:
    """Read the host, and the traffic of an interface that a line ends at."""
    return Reading(
        at_ns=time.monotonic_ns(),
        cores=_read_cores(),
        cpu_ns=time.process_time_ns(),
        wait_ns=thread_wait_ns(),
        workers_wait_ns=ended_wait_ns(),
        cpu_pressure_ns=_read_pressure(_CPU_PRESSURE, b"some"),
        memory_stall_ns=_read_pressure(_MEMORY_PRESSURE, b"full"),
        throttling=_read_throttling(),
        firmware_throttled=_read_firmware(),
        traffic=None if interface is None or interface == LOOPBACK else _read_traffic(interface),
    )


def nic_speed_bps(interface: str | None) -> int | None:
    """The negotiated speed of an interface, absent where it has none (tunnels, Wi-Fi, modems) or no line ends there."""
    megabits = None if interface is None or interface == LOOPBACK else interface_figure(interface, "speed")
    return megabits * _BPS_PER_MBPS if megabits is not None and megabits > 0 else None


def interface_figure(interface: str, name: str) -> int | None:
    """One number that the kernel shows of an interface; absent where it has none."""
    try:
        return int(_read_file(f"{_SYS_NET}/{interface}/{name}"))
    except ValueError:
        return None


def _read_cores() -> tuple[CoreTicks, ...]:
    text = _read_kept(_PROC_STAT)
    return tuple(_ticks(line) for line in text.split(b"\n") if line[:3] == b"cpu" and line[3:4].isdigit())


def _ticks(line: bytes) -> CoreTicks:
    """One line: user nice system idle iowait irq softirq steal (proc(5)); guests are within user."""
    ticks = [int(word) for word in line.split()[1:9]]
    total = sum(ticks)
    return CoreTicks(busy=total - ticks[3] - ticks[4], total=total, softirq=ticks[5] + ticks[6], steal=ticks[7])


def _read_pressure(path: str, kind: bytes) -> int | None:
    """The `total` of one line of a pressure file (accounting/psi.rst); absent when the kernel does not account."""
    for line in _read_kept(path).split(b"\n"):
        if line.startswith(kind):
            return int(line.rpartition(b"=")[2]) * _NS_PER_US
    return None


def _read_throttling() -> Throttling | None:
    path = _throttling_file()
    return None if path is None else _parse_throttling(_read_kept(path))


def _parse_throttling(text: bytes) -> Throttling | None:
    figures = dict(line.split(maxsplit=1) for line in text.splitlines())
    try:
        return Throttling(periods=int(figures[b"nr_periods"]), throttled=int(figures[b"nr_throttled"]))
    except (KeyError, ValueError):
        return None


@functools.cache
def _throttling_file() -> str | None:
    """`cpu.stat` of the cgroup that this process was started in, absent where nothing can limit it.

    A service stays in its cgroup, so this is looked up once. Limits of the groups above it are not seen.
    """
    for path in _cgroup_directories():
        if _parse_throttling(_read_file(str(path / "cpu.stat"))) is not None:
            return str(path / "cpu.stat")
    return None


def _cgroup_directories() -> list[Path]:
    """Where the own cgroup may be: of the `cpu` controller (v1), of the one hierarchy (v2), or a container's root."""
    try:
        lines = _OWN_CGROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "cpu" in controllers.split(","):
            found += [_CGROUP_MOUNT / controllers / path[1:], _CGROUP_MOUNT / "cpu" / path[1:]]
        elif not controllers:
            found.append(_CGROUP_MOUNT / path[1:])
    return [*found, _CGROUP_MOUNT]


def _read_firmware() -> bool | None:
    if not _HAS_FIRMWARE:
        return None
    try:
        return bool(int(_read_file(_THROTTLED), 16) & _THROTTLED_NOW)
    except ValueError:
        return None


def _read_traffic(interface: str) -> Traffic | None:
    """The interface's line of /proc/net/dev: eight figures received, then eight sent, bytes and packets first."""
    name = f"{interface}:".encode()
    for line in _read_file(_NET_DEV, reads_max=_NET_DEV_READS_MAX).split(b"\n"):
        if line.lstrip().startswith(name):
            words = line.partition(b":")[2].split()
            return Traffic(int(words[0]), int(words[1]), int(words[8]), int(words[9]))
    return None


def _read_kept(path: str) -> bytes:
    """A file of the whole host: it stays open, because opening it costs half as much as reading it."""
    descriptor = _kept_open(path)
    try:
        return b"" if descriptor is None else os.pread(descriptor, _READ_BYTES, 0)
    except OSError:
        return b""  # pressure accounting that was switched off at boot, or a control group that is gone


@functools.cache
def _kept_open(path: str) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _read_file(path: str, *, reads_max: int = 1) -> bytes:
    """The file, or nothing. The kernel gives a long list of records one page at a time."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    parts: list[bytes] = []
    try:
        while len(parts) < reads_max and (part := os.read(descriptor, _READ_BYTES)):
            parts.append(part)
    except OSError:
        return b""
    finally:
        os.close(descriptor)
    return b"".join(parts)
