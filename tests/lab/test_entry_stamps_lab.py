"""When packets entered a TUN device, told long after it by the kernel's stamps."""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from fleet_controller.lab.emulator import End, configure, open_device
from fleet_controller.lab.entry_stamps import EntryStamps
from fleet_controller.lab.namespaces import entered, namespace, run_ip

NEAR_V4, FAR_V4 = "198.18.0.2", "198.18.0.1"  # RFC 2544's benchmarking range
NEAR_V6, FAR_V6 = "2001:db8::2", "2001:db8::1"
PORT = 7
LATE_S = 0.01
# What a stamp may be later than the system call that sent the packet: a busy machine may leave the sender waiting.
SENDING_S = 0.003


@dataclass
class Device:
    """A TUN device that nobody reads but the test."""

    end: End
    descriptor: int
    stamps: EntryStamps

    def connection(self, host: str, kind: socket.SocketKind) -> socket.socket:
        """A socket that sends to the device."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with entered(self.end.namespace):
            sock = socket.socket(family, kind)
        sock.setblocking(False)  # noqa: FBT003 - the socket API takes it so
        sock.connect_ex((host, PORT))
        return sock

    def frames(self) -> Iterator[tuple[bytes, int]]:
        """What waits in the device, and when it was read; without what the kernel says on its own."""
        while True:
            try:
                frame = os.read(self.descriptor, 70_000)
            except BlockingIOError:
                return
            if frame[10] >> 4 == 4 or frame[16] != socket.IPPROTO_ICMPV6:
                yield frame, time.monotonic_ns()


@pytest.fixture
def device() -> Iterator[Device]:
    """In a namespace of its own, up, its packets looked at."""
    with namespace("near") as near:
        end = End(near, "wan0", f"{NEAR_V4}/30", f"{NEAR_V6}/64")
        descriptor = open_device(end, offload=False)
        stamps = EntryStamps(near, "wan0")
        try:
            configure(end, 100_000_000)
            yield Device(end, descriptor, stamps)
        finally:
            stamps.close()
            os.close(descriptor)


def ages_s(device: Device) -> list[float | None]:
    """How long before now each waiting packet entered, in order; absent without a stamp."""
    found: list[float | None] = []
    for frame, read_ns in device.frames():
        entered_ns = device.stamps.entered_ns(frame, read_ns)
        found.append(None if entered_ns is None else (read_ns - entered_ns) / 1e9)
    return found


@pytest.mark.parametrize("host", [FAR_V4, FAR_V6])
@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_a_packet_that_waited_is_known_to_have_come_before(device: Device, host: str, kind: socket.SocketKind) -> None:
    """Datagram and SYN, IPv4 and IPv6, read 10 ms after they were sent: the stamp is of the sending."""
    with device.connection(host, kind) as sock:
        if kind is socket.SOCK_DGRAM:
            ages_s(device)
            sock.send(b"short")
        began_s = time.monotonic()
        time.sleep(LATE_S)
        (age_s,) = ages_s(device)
        passed_s = time.monotonic() - began_s
    assert age_s is not None
    assert LATE_S - 0.001 < age_s < passed_s + SENDING_S


def test_each_packet_has_its_own_stamp(device: Device) -> None:
    """Ten of them, 3 ms apart, read together; a long one among them has none, and does no harm."""
    with device.connection(FAR_V4, socket.SOCK_DGRAM) as sock:
        for number in range(10):
            sock.send(bytes(1000) if number == 4 else bytes([number]))
            time.sleep(0.003)
        ages = ages_s(device)
    assert [age is None for age in ages] == [number == 4 for number in range(10)]
    known = [age for age in ages if age is not None]
    assert all(one - other > 0.002 for one, other in itertools.pairwise(known))


def test_a_packet_that_never_came_by_the_device_has_none(device: Device) -> None:
    """Nothing like it among the copies: no stamp of another packet is taken for its own."""
    with device.connection(FAR_V4, socket.SOCK_DGRAM) as sock:
        sock.send(b"one")
        ((frame, read_ns),) = device.frames()
        other = frame[:-1] + b"?"
        assert device.stamps.entered_ns(other, read_ns) is None


def test_a_stamp_of_a_clock_that_was_stepped_is_not_used(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward by two seconds and back by two: neither is how long a packet waited."""
    real = time.time_ns
    with device.connection(FAR_V4, socket.SOCK_DGRAM) as sock:
        for step_ns in (2_000_000_000, -2_000_000_000):
            sock.send(b"short")
            monkeypatch.setattr(time, "time_ns", lambda step_ns=step_ns: real() + step_ns)
            assert ages_s(device) == [None]
            monkeypatch.setattr(time, "time_ns", real)
        sock.send(b"short")
        assert ages_s(device) != [None]


def test_a_device_that_was_down_is_looked_at_again(device: Device) -> None:
    """As a line that vanishes and comes back."""
    for state in ("down", "up"):
        run_ip("-n", device.end.namespace, "link", "set", "dev", "wan0", state)
    with device.connection(FAR_V4, socket.SOCK_DGRAM) as sock:
        sock.send(b"short")
        (age_s,) = ages_s(device)
    assert age_s is not None


def test_a_device_that_is_not_there_is_an_error() -> None:
    """Said when the line is built, not when the first packet comes."""
    with namespace("near") as near, pytest.raises(OSError, match="No such device"):
        EntryStamps(near, "wan0")
