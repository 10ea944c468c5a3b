"""The operating system's errors in the contract's words: the one place where an errno becomes a failure."""

from __future__ import annotations

import errno
import socket
import ssl
from typing import Final

from probe.errors import MeasurementFailedError
from probe.messages import FailureKind, Operation

# What a socket call can answer with on Linux (errno(3), ip(7), tcp(7), udp(7)) once the network has spoken.
KIND_OF_ERRNO: Final[dict[int, FailureKind]] = {
    errno.ETIMEDOUT: FailureKind.TIMED_OUT,
    errno.ECONNREFUSED: FailureKind.REFUSED,
    errno.ECONNRESET: FailureKind.RESET,
    errno.ENETRESET: FailureKind.RESET,
    errno.ECONNABORTED: FailureKind.CLOSED,
    errno.EPIPE: FailureKind.CLOSED,
    errno.ESHUTDOWN: FailureKind.CLOSED,
    errno.ENOTCONN: FailureKind.CLOSED,
    errno.ENETUNREACH: FailureKind.NETWORK_UNREACHABLE,
    errno.EHOSTUNREACH: FailureKind.HOST_UNREACHABLE,
    errno.EHOSTDOWN: FailureKind.HOST_UNREACHABLE,
    errno.ENONET: FailureKind.NETWORK_UNREACHABLE,
    # ICMP "protocol unreachable": the host is there and wants none of it.
    errno.ENOPROTOOPT: FailureKind.REFUSED,
    errno.ENETDOWN: FailureKind.LINK_LOST,
    errno.ENODEV: FailureKind.LINK_LOST,
    errno.ENXIO: FailureKind.LINK_LOST,
    errno.EADDRNOTAVAIL: FailureKind.ADDRESS_UNAVAILABLE,
    errno.EADDRINUSE: FailureKind.ADDRESS_UNAVAILABLE,
    errno.EAFNOSUPPORT: FailureKind.ADDRESS_UNAVAILABLE,
    # A firewall rule of this host, or a "prohibit" route (ip-route(8)).
    errno.EACCES: FailureKind.PERMISSION_DENIED,
    errno.EPERM: FailureKind.PERMISSION_DENIED,
    errno.EMSGSIZE: FailureKind.MESSAGE_TOO_LONG,
    # ICMP "parameter problem", and what a device gives for a frame it cannot carry.
    errno.EPROTO: FailureKind.MALFORMED,
    errno.EBADMSG: FailureKind.MALFORMED,
}

# getaddrinfo(3) numbers its answers on its own.
KIND_OF_RESOLVER_CODE: Final[dict[int, FailureKind]] = {
    socket.EAI_NONAME: FailureKind.NAME_NOT_FOUND,
    socket.EAI_NODATA: FailureKind.NAME_NOT_FOUND,
    socket.EAI_AGAIN: FailureKind.NO_ANSWER,
    socket.EAI_FAIL: FailureKind.SERVER_FAILURE,
}


def failed(operation: Operation, error: BaseException) -> MeasurementFailedError:
    """Say in the contract's words what `error` means for `operation`.

    Use it as `raise failed(Operation.CONNECT, error) from error`.
    """
    return MeasurementFailedError(operation, kind_of(error), _detail(error))


def kind_of(error: BaseException) -> FailureKind:
    """The kind of failure that `error` is; `OTHER` for what nobody has met yet."""
    # The order matters: the TLS and resolver errors are OSErrors too, with numbers of their own.
    if isinstance(error, ssl.SSLError):
        return _kind_of_tls(error)
    if isinstance(error, socket.gaierror):
        return KIND_OF_RESOLVER_CODE.get(error.errno or 0, FailureKind.OTHER)
    if isinstance(error, OSError) and error.errno in KIND_OF_ERRNO:
        return KIND_OF_ERRNO[error.errno]
    return _kind_of_class(error)


def _kind_of_tls(error: ssl.SSLError) -> FailureKind:
    if isinstance(error, ssl.SSLCertVerificationError):
        return FailureKind.CERTIFICATE_INVALID
    if isinstance(error, ssl.SSLZeroReturnError | ssl.SSLEOFError):
        return FailureKind.CLOSED
    # The socket layer gives a TLS time-out as a bare message, without a number.
    if "timed out" in str(error):
        return FailureKind.TIMED_OUT
    return FailureKind.HANDSHAKE_FAILED


def _kind_of_class(error: BaseException) -> FailureKind:
    """For errors raised by Python itself, which carry no errno (asyncio's `TimeoutError()`)."""
    classes: tuple[tuple[type[BaseException], FailureKind], ...] = (
        (TimeoutError, FailureKind.TIMED_OUT),
        (ConnectionRefusedError, FailureKind.REFUSED),
        (ConnectionResetError, FailureKind.RESET),
        (ConnectionError, FailureKind.CLOSED),
        (EOFError, FailureKind.CLOSED),
        (PermissionError, FailureKind.PERMISSION_DENIED),
    )
    return next((kind for kind_class, kind in classes if isinstance(error, kind_class)), FailureKind.OTHER)


def _detail(error: BaseException) -> str:
    # The number is in the kind already; a person wants the words.
    words = error.strerror if isinstance(error, OSError) else None
    return words or str(error) or type(error).__name__
