"""When short packets entered a device, by the kernel's clock.

The process that carries the line's packets reads one when it has woken up, on a virtual machine 40 to 200 microseconds
after it was sent: more than the round trips that are measured over the line may be wrong by. A packet socket on the
device gets a copy of each packet, with the moment at which the kernel handed it to the device. Delay is measured with
short packets; those of a running TCP connection come in masses, and are left out.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import time
from typing import Final

from fleet_controller.lab.namespaces import entered
from fleet_controller.lab.packets import VNET_HEADER_BYTES, is_of_running_tcp

_LONGEST_BYTES: Final = 256
_FRAME_BYTES_MAX: Final = _LONGEST_BYTES + VNET_HEADER_BYTES
# The stamp is of the wall clock: where that was stepped meanwhile, it is of no use. What comes while others are read is
# younger than the moment at which reading began.
_AGE_NS_MIN: Final = -1_000_000
_AGE_NS_MAX: Final = 50_000_000
_RECEIVE_BUFFER_BYTES: Final = 1 << 20
_ALL_PROTOCOLS: Final = 3  # linux/if_ether.h
_SO_ATTACH_FILTER: Final = 26  # asm-generic/socket.h, this and the next two
_SO_RCVBUFFORCE: Final = 33
_SO_TIMESTAMPNS_NEW: Final = 64
_STAMP: Final = struct.Struct("qq")
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(_STAMP.size)
_NS_PER_S: Final = 1_000_000_000

# Classic BPF (linux/filter.h): what leaves, is short, and is no TCP segment but a SYN. Each line: code, how many lines
# to skip if true, how many if not, operand.
_LENGTH, _WORD, _BYTE, _BYTE_BEYOND_X = 0x80, 0x20, 0x30, 0x50
_X_IPV4_HEADER, _X, _AND = 0xB1, 0x01, 0x54
_IF_GREATER, _IF_EQUAL, _IF_SET, _SKIP, _RETURN = 0x25, 0x15, 0x45, 0x05, 0x06
_PACKET_TYPE: Final = 0xFFFFF004  # SKF_AD_OFF + SKF_AD_PKTTYPE
_OUTGOING: Final = 4  # linux/if_packet.h
_PROGRAM: Final = (
    (_LENGTH, 0, 0, 0),
    (_IF_GREATER, 13, 0, _LONGEST_BYTES),
    (_WORD, 0, 0, _PACKET_TYPE),
    (_IF_EQUAL, 0, 11, _OUTGOING),
    (_BYTE, 0, 0, 0),
    (_AND, 0, 0, 0xF0),
    (_IF_EQUAL, 3, 0, 0x60),
    (_BYTE, 0, 0, 9),  # IPv4: the protocol
    (_X_IPV4_HEADER, 0, 0, 0),
    (_SKIP, 0, 0, 2),
    (_BYTE, 0, 0, 6),  # IPv6: the next header
    (_X, 0, 0, 40),
    (_IF_EQUAL, 0, 3, socket.IPPROTO_TCP),
    (_BYTE_BEYOND_X, 0, 0, 13),
    (_IF_SET, 1, 0, 0x02),  # SYN
    (_RETURN, 0, 0, 0),
    (_RETURN, 0, 0, 0xFFFF),
)


class EntryStamps:
    """Of one device of a namespace; it may come up later, and go down and up again.

    Raises:
        OSError: no such namespace or device, or not allowed.
    """

    def __init__(self, namespace: str, device: str) -> None:
        code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in _PROGRAM))
        program = struct.pack("HP", len(_PROGRAM), ctypes.addressof(code))  # struct sock_fprog
        with entered(namespace):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        try:
            self._socket.setblocking(False)  # noqa: FBT003 - the socket API takes it so
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS_NEW, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
            self._socket.bind((device, _ALL_PROTOCOLS))
        except OSError:
            self._socket.close()
            raise

    def entered_ns(self, frame: bytes, read_ns: int) -> int | None:
        """When a frame that was read at `read_ns` entered the device, both by the monotonic clock, if that is known."""
        if len(frame) > _FRAME_BYTES_MAX or is_of_running_tcp(frame):
            return None
        wanted = frame[VNET_HEADER_BYTES:]
        while (found := self._next()) is not None:
            packet, stamp_ns = found
            if packet == wanted:  # others did not come through the device
                age_ns = time.time_ns() - (time.monotonic_ns() - read_ns) - stamp_ns
                return read_ns - age_ns if _AGE_NS_MIN <= age_ns <= _AGE_NS_MAX else None
        return None

    def _next(self) -> tuple[bytes, int] | None:
        try:
            packet, ancillary, _, _ = self._socket.recvmsg(_LONGEST_BYTES, _ANCILLARY_BYTES)
        except OSError as error:
            # That the device went down is said once, before what came since it is up again.
            return self._next() if error.errno == errno.ENETDOWN else None
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS_NEW:
                seconds, nanoseconds = _STAMP.unpack(content)
                return packet, seconds * _NS_PER_S + nanoseconds
        return packet, 0

    def close(self) -> None:
        """Look no more."""
        self._socket.close()
