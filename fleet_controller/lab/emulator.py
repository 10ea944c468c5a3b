"""An access line in user space: rate, delay, jitter, loss and a buffer between two network namespaces.

Two TUN devices, one at each end, and a process that carries packets between them as the line would: a buffer with
tail drop, a serialiser of an exact rate, random loss, a delay and jitter that keeps the order. It needs root and
/dev/net/tun, and no kernel module. Rates are of the IP layer (RFC 5136): an IP packet of n bytes takes 8 n / rate.

    python -m fleet_controller.lab.emulator '{"profile": {…}, "near": {…}, "far": {…}, "seed": 1}'

The devices belong to the process: when it ends, they are gone. It ends with the process that started it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import json
import os
import select
import signal
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from fleet_controller.lab.line import VNET_HEADER_BYTES, Line, LineCounters, LinkProfile, line_pair
from fleet_controller.lab.namespaces import entered, run_ip
from fleet_controller.lab.services import Service

_TUNSETIFF = 0x400454CA  # linux/if_tun.h, this and the next six
_TUNSETOFFLOAD = 0x400454D0
_IFF_TUN_NO_PI_VNET_HDR = 0x0001 | 0x1000 | 0x4000
_TUN_F_CSUM = 0x01
_TUN_F_TSO4 = 0x02
_TUN_F_TSO6 = 0x04
# Below this rate a super-packet of a few segments would hold the line for so long that it shows in the delay.
_OFFLOAD_BPS_MIN = 50_000_000
# The longest that one super-packet may hold the line: what a probe packet can wait behind it.
_SUPER_PACKET_S_MAX = 0.001
_GSO_BYTES_MAX = 65_536  # the kernel's own limit of an IPv4 super-packet
_FRAME_BYTES_MAX = _GSO_BYTES_MAX + VNET_HEADER_BYTES
# Packets taken from one end before the other has its turn.
_BATCH = 64
# The device's own queue only bridges the time until the next turn; a drop there would be an unplanned loss.
_DEVICE_QUEUE_PACKETS = 10_000
# A shorter sleep is a busy wait at real-time priority, and the kernel halts such a process for 50 ms in each second.
_GRAIN_NS = 100_000
# What is due this soon is delivered now: half a grain, and about what waking up and writing cost anyway.
_EARLY_NS = _GRAIN_NS // 2
_REALTIME_PRIORITY = 20
_PR_SET_TIMERSLACK = 29  # linux/prctl.h
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
READY = "the line is up"
DIRECTIONS = ("upload", "download")  # in the order of the counters


@dataclass(frozen=True, slots=True)
class End:
    """Where one side of the line is: the device that appears in a namespace, and its address with prefix length."""

    namespace: str
    device: str
    address: str


@dataclass(slots=True)
class Way:
    """One direction of the line between its two devices."""

    line: Line
    source: int
    sink: int
    write_errors: int = 0

    def take(self, now_ns: int) -> None:
        """Read what the source device has, at most one batch."""
        for _ in range(_BATCH):
            try:
                frame = os.read(self.source, _FRAME_BYTES_MAX)
            except BlockingIOError:
                return
            self.line.offer(frame, now_ns)

    def give(self, until_ns: int) -> None:
        """Write what is due to the sink device. A device that is down loses it, as an unplugged modem would."""
        for frame in self.line.due(until_ns):
            try:
                os.write(self.sink, frame)
            except OSError:
                self.write_errors += 1


def carry(ways: Sequence[Way]) -> None:
    """Carry packets for ever."""
    by_source = {way.source: way for way in ways}
    sources = list(by_source)
    while True:
        now_ns = time.monotonic_ns()
        for way in ways:
            way.give(now_ns + _EARLY_NS)
        dues = [due for way in ways if (due := way.line.next_due_ns()) is not None]
        wait_s = max(min(dues) - _EARLY_NS - time.monotonic_ns(), _GRAIN_NS) / 1e9 if dues else None
        readable, _, _ = select.select(sources, (), (), wait_s)
        now_ns = time.monotonic_ns()
        for source in readable:
            by_source[source].take(now_ns)


def open_device(end: End, *, offload: bool) -> int:
    """Make the TUN device of one end, with a header that tells of super-packets; gives its descriptor.

    Raises:
        OSError: no such namespace, no /dev/net/tun, or not allowed.
    """
    with entered(end.namespace):
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", end.device.encode(), _IFF_TUN_NO_PI_VNET_HDR))
    # Checksums are left to the far end's kernel, which accepts the packets unverified: the line makes no bit errors.
    features = _TUN_F_CSUM | (_TUN_F_TSO4 | _TUN_F_TSO6 if offload else 0)
    fcntl.ioctl(descriptor, _TUNSETOFFLOAD, features)
    return descriptor


def configure(end: End, rate_bps: int) -> None:
    """Give the device its address and bring it up. Its super-packets are at most 1 ms long at `rate_bps`."""
    gso_bytes = min(max(int(rate_bps * _SUPER_PACKET_S_MAX / 8), 2 * 1500), _GSO_BYTES_MAX)
    run_ip("-n", end.namespace, "address", "add", end.address, "dev", end.device)
    device = ("-n", end.namespace, "link", "set", "dev", end.device)
    run_ip(*device, "txqueuelen", str(_DEVICE_QUEUE_PACKETS), "gso_max_size", str(gso_bytes), "up")


def be_punctual() -> bool:
    """Ask for real-time priority, so that other work on the host does not make packets late. Tells if it got it."""
    gc.disable()  # nothing here makes cycles, and a collection is a pause
    _LIBC.prctl(_PR_SET_TIMERSLACK, 1)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_REALTIME_PRIORITY))
    except PermissionError:
        return False
    return True


class EmulatedLink(Service):
    """The emulating child process, with its devices up and addressed once it has started. The probe is at `near`."""

    def __init__(self, directory: Path, profile: LinkProfile, near: End, far: End, *, seed: int = 1) -> None:
        self.profile, self.near, self.far = profile, near, far
        settings = {"profile": asdict(profile), "near": asdict(near), "far": asdict(far), "seed": seed}
        command = [
            sys.executable,
            "-m",
            "fleet_controller.lab.emulator",
            json.dumps(settings | {"parent": os.getpid()}),
        ]
        super().__init__(directory, command, self._is_ready)
        self._log_start_bytes = 0

    def start(self) -> Self:
        """Start it, with empty buffers and new devices.

        Raises:
            ServiceError: no such namespace, a device of this name exists, or not allowed; has its words.
        """
        self._log_start_bytes = self.log_file.stat().st_size if self.log_file.exists() else 0
        return super().start()

    def counters(self) -> dict[str, LineCounters]:
        """What became of the packets of the last run, by direction. Only after `stop`."""
        lines = self.log_file.read_text(encoding="utf-8").splitlines()
        return {name: LineCounters(**json.loads(line)) for name, line in zip(DIRECTIONS, lines[-2:], strict=True)}

    def _is_ready(self) -> bool:
        return READY.encode() in self.log_file.read_bytes()[self._log_start_bytes :]


def main(arguments: Sequence[str]) -> int:
    """Set the line up, say so on standard output, and carry packets until a signal; then print the counters."""
    settings: dict[str, Any] = json.loads(arguments[0])
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != settings["parent"]:
        return 1  # the parent died before the kernel knew that we go with it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started us, and it ends us
    ways = _set_up(
        LinkProfile(**settings["profile"]), End(**settings["near"]), End(**settings["far"]), settings["seed"]
    )
    realtime = be_punctual()
    print(json.dumps({"event": READY, "realtime": realtime}), flush=True)  # noqa: T201 - the parent waits for it
    with contextlib.suppress(SystemExit):
        carry(ways)
    for way in ways:
        print(json.dumps(asdict(way.line.counters)), flush=True)  # noqa: T201 - `EmulatedLink.counters` reads it
    return 0


def _set_up(profile: LinkProfile, near: End, far: End, seed: int) -> tuple[Way, Way]:
    offload = min(profile.download_bps, profile.upload_bps) >= _OFFLOAD_BPS_MIN
    near_device, far_device = open_device(near, offload=offload), open_device(far, offload=offload)
    configure(near, profile.upload_bps)
    configure(far, profile.download_bps)
    upload, download = line_pair(profile, seed)
    return Way(upload, near_device, far_device), Way(download, far_device, near_device)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
