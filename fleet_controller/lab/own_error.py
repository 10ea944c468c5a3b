"""The emulated line's own error: what it adds to the delay and to the rate that it was told, by the kernel's clocks.

A UDP packet is stamped by the kernel when it enters the sending device and when it reaches the receiving socket, on the
same clock: the difference less the configured delay and the packet's own time on the line is the emulator's error.
"""

from __future__ import annotations

import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Final

import msgspec

from fleet_controller.errors import ServiceError
from fleet_controller.lab.namespaces import entered
from fleet_controller.lab.profile import DIRECTIONS, Direction, LinkProfile
from fleet_controller.lab.services import die_with_parent
from fleet_controller.lab.site import NEAR_V4, PEER_V4, Site

# linux/net_tstamp.h and asm-generic/socket.h. The stamps are of 16 bytes on 32-bit and 64-bit systems alike.
_SO_TIMESTAMPNS_NEW: Final = 64
_SO_TIMESTAMPING_NEW: Final = 65
_TX_SOFTWARE, _SOFTWARE, _OPT_TSONLY = 1 << 1, 1 << 4, 1 << 11
_STAMP: Final = struct.Struct("qq")
_NUMBER: Final = struct.Struct("!I")
_NS_PER_S: Final = 1_000_000_000
_HEADER_BYTES: Final = 28  # IPv4 and UDP
_PORT: Final = 7007
_PROBE_BYTES: Final = 44
_PACKETS: Final = 500
_GAP_S: Final = 0.005
_FULL_PAYLOAD_BYTES: Final = 1472
_RATE_S: Final = 1.0
_UDP_SEGMENT: Final = 103  # linux/udp.h
_AT_ONCE: Final = 40
_RECEIVE_BUFFER_BYTES: Final = 1 << 28
_SO_RCVBUFFORCE: Final = 33
_TIME_OUT_S: Final = 5.0
_DELAYED: Final = LinkProfile(100_000_000, 100_000_000, 0.020)
_RATES_BPS: Final = (10_000_000, 100_000_000, 300_000_000)


class DelayError(msgspec.Struct, frozen=True):
    """What one direction adds to the configured one-way delay, over some hundred packets."""

    direction: Direction
    busy_cores: int
    packets: int
    median_s: float
    p1_s: float
    p99_s: float


class RateError(msgspec.Struct, frozen=True):
    """The IP-layer rate at which a second's worth of full packets arrived, and its error."""

    rate_bps: int
    measured_bps: float

    @property
    def error_ratio(self) -> float:
        """Relative."""
        return self.measured_bps / self.rate_bps - 1


def measure_delays(busy_cores: int) -> tuple[DelayError, ...]:
    """Both ways of an idle line of 100 Mbit/s and 20 ms, while so many other processes keep cores busy.

    Raises:
        ServiceError: the lab cannot be built, or packets got lost.
    """
    with Site(_DELAYED) as site, _busy(busy_cores):
        return tuple(_delay_error(site, direction, busy_cores) for direction in DIRECTIONS)


def measure_rates() -> tuple[RateError, ...]:
    """A second's worth of full packets offered at once, at some rates."""
    return tuple(_rate_error(rate_bps) for rate_bps in _RATES_BPS)


def delay_errors(site: Site, direction: Direction, packets: int) -> list[float]:
    """What one direction of an idle line without jitter adds to its one-way delay: seconds of each packet, ascending.

    Raises:
        ServiceError: packets got lost.
    """
    sent_ns: dict[int, int] = {}
    with _sockets(site, direction) as (sender, receiver), _receiving(receiver, packets) as received_ns:
        sender.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPING_NEW, _TX_SOFTWARE | _SOFTWARE | _OPT_TSONLY)
        for number in range(packets):
            sender.send(_NUMBER.pack(number) + bytes(_PROBE_BYTES - _NUMBER.size))
            sent_ns[number] = _sent_stamp(sender)
            time.sleep(_GAP_S)
    if len(received_ns) < packets:
        raise ServiceError(f"{packets - len(received_ns)} of {packets} packets did not arrive")
    wire_s = (_PROBE_BYTES + _HEADER_BYTES) * 8 / site.profile.rate_bps(direction)
    return sorted(
        (received_ns[number] - sent_ns[number]) / _NS_PER_S - site.profile.delay_s / 2 - wire_s for number in sent_ns
    )


def _delay_error(site: Site, direction: Direction, busy_cores: int) -> DelayError:
    errors_s = delay_errors(site, direction, _PACKETS)
    return DelayError(
        direction=direction,
        busy_cores=busy_cores,
        packets=len(errors_s),
        median_s=statistics.median(errors_s),
        p1_s=errors_s[len(errors_s) // 100],
        p99_s=errors_s[len(errors_s) * 99 // 100],
    )


def _rate_error(rate_bps: int) -> RateError:
    profile = LinkProfile(rate_bps, rate_bps, 0.002, buffer_s=3.0)
    packet_bits = (_FULL_PAYLOAD_BYTES + _HEADER_BYTES) * 8
    packets = round(rate_bps * _RATE_S / packet_bits)
    padding = bytes(_FULL_PAYLOAD_BYTES - _NUMBER.size)
    with Site(profile) as site, _sockets(site, "upload") as (sender, receiver):
        # The kernel cuts what is sent into packets: one system call for each would not be quick enough at every rate.
        sender.setsockopt(socket.SOL_UDP, _UDP_SEGMENT, _FULL_PAYLOAD_BYTES)
        began_s = time.monotonic()
        for first in range(0, packets, _AT_ONCE):
            numbers = range(first, min(first + _AT_ONCE, packets))
            sender.send(b"".join(_NUMBER.pack(number) + padding for number in numbers))
            # Half as fast again as the line: it never runs empty, and the device's queue does not overflow.
            ahead_s = numbers.stop * packet_bits / (1.5 * rate_bps) - (time.monotonic() - began_s)
            time.sleep(max(ahead_s, 0.0))
        # Only now: a thread that receives would take the sender's time, and the line might run empty.
        with _receiving(receiver, packets) as received_ns:
            pass
    if len(received_ns) < packets:
        raise ServiceError(f"{packets - len(received_ns)} of {packets} packets did not arrive")
    # From the middle of the first tenth to that of the last: a packet that the host makes late does not count.
    tenth = packets // 10
    first_ns = statistics.median(received_ns[number] for number in range(tenth))
    last_ns = statistics.median(received_ns[number] for number in range(packets - tenth, packets))
    return RateError(rate_bps, (packets - tenth) * packet_bits * _NS_PER_S / (last_ns - first_ns))


@contextmanager
def _sockets(site: Site, direction: Direction) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A sender, connected, and a receiver with stamps, at the two ends of the line."""
    ends = ((site.near, NEAR_V4), (site.far, PEER_V4))
    (source, source_host), (sink, sink_host) = ends if direction == "upload" else ends[::-1]
    with ExitStack() as stack:
        with entered(source):
            sender = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        with entered(sink):
            receiver = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
        receiver.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS_NEW, 1)
        receiver.bind((sink_host, _PORT))
        receiver.settimeout(_TIME_OUT_S)
        sender.bind((source_host, 0))
        sender.connect((sink_host, _PORT))
        yield sender, receiver


@contextmanager
def _receiving(receiver: socket.socket, packets: int) -> Iterator[Mapping[int, int]]:
    """The kernel's receive stamps by packet number, complete when the block has ended and nothing was lost."""
    received_ns: dict[int, int] = {}

    def receive() -> None:
        try:
            while len(received_ns) < packets:
                packet, ancillary, _, _ = receiver.recvmsg(2048, 256)
                received_ns[_NUMBER.unpack_from(packet)[0]] = _stamp_ns(ancillary)
        except TimeoutError:
            return

    thread = threading.Thread(target=receive)
    thread.start()
    try:
        yield received_ns
    finally:
        thread.join()


def _sent_stamp(sender: socket.socket) -> int:
    """When the packet sent last entered the device."""
    deadline_s = time.monotonic() + _TIME_OUT_S
    while time.monotonic() < deadline_s:
        try:
            _, ancillary, _, _ = sender.recvmsg(0, 512, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
        except BlockingIOError:
            continue
        return _stamp_ns(ancillary)
    raise ServiceError("the kernel gave no stamp of a packet's sending")


def _stamp_ns(ancillary: list[tuple[int, int, bytes]]) -> int:
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind in (_SO_TIMESTAMPNS_NEW, _SO_TIMESTAMPING_NEW):
            seconds, nanoseconds = _STAMP.unpack_from(content)
            return int(seconds * _NS_PER_S + nanoseconds)
    raise ServiceError("the kernel gave no stamp of a packet")


@contextmanager
def _busy(cores: int) -> Iterator[None]:
    """Other work on the host."""
    with ExitStack() as stack:
        for _ in range(cores):
            process = subprocess.Popen(
                [sys.executable, "-c", "while True: pass"],
                preexec_fn=die_with_parent,  # noqa: PLW1509 - only sets a flag, and no thread is about yet
                start_new_session=True,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield
