from __future__ import annotations

import errno
import socket
import ssl

import pytest

from probe.flows.faults import KIND_OF_ERRNO, failed, kind_of
from probe.messages import FailureKind, Operation

# What connect(2), send(2), recv(2) and the network's ICMP messages give a program on Linux.
ERRNOS_OF_THE_NETWORK = (
    *("ETIMEDOUT", "ECONNREFUSED", "ECONNRESET", "ECONNABORTED", "EPIPE", "ESHUTDOWN", "ENOTCONN", "ENETRESET"),
    *("ENETUNREACH", "EHOSTUNREACH", "EHOSTDOWN", "ENONET", "ENETDOWN", "ENODEV", "ENXIO", "EADDRNOTAVAIL"),
    *("EADDRINUSE", "EAFNOSUPPORT", "EACCES", "EPERM", "EMSGSIZE", "ENOPROTOOPT", "EPROTO", "EBADMSG"),
)


@pytest.mark.parametrize("name", ERRNOS_OF_THE_NETWORK)
def test_no_errno_of_interest_is_other(name: str) -> None:
    """Whatever the network can answer a socket call with has a name in the vocabulary."""
    number = getattr(errno, name)
    assert kind_of(OSError(number, name)) is not FailureKind.OTHER


def test_the_table_says_nothing_about_unlisted_errnos() -> None:
    """A line added to the table is added to the list above too."""
    assert set(KIND_OF_ERRNO) == {getattr(errno, name) for name in ERRNOS_OF_THE_NETWORK}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ECONNREFUSED, "refused"), FailureKind.REFUSED),
        (OSError(errno.ENETUNREACH, "no route"), FailureKind.NETWORK_UNREACHABLE),
        (OSError(errno.EHOSTUNREACH, "no host"), FailureKind.HOST_UNREACHABLE),
        (OSError(errno.ENODEV, "gone"), FailureKind.LINK_LOST),
        (OSError(errno.EMSGSIZE, "too long"), FailureKind.MESSAGE_TOO_LONG),
        (TimeoutError(), FailureKind.TIMED_OUT),
        (ConnectionResetError(), FailureKind.RESET),
        (ConnectionRefusedError(), FailureKind.REFUSED),
        (ConnectionAbortedError(), FailureKind.CLOSED),
        (BrokenPipeError(), FailureKind.CLOSED),
        (EOFError(), FailureKind.CLOSED),
        (PermissionError(), FailureKind.PERMISSION_DENIED),
        (ValueError("no fault of the network"), FailureKind.OTHER),
        (OSError("without a number"), FailureKind.OTHER),
    ],
)
def test_errors_have_their_kind(error: BaseException, kind: FailureKind) -> None:
    """Errors with a number go by it, errors that Python raises itself by their class."""
    assert kind_of(error) is kind


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ssl.SSLCertVerificationError(1, "self-signed certificate"), FailureKind.CERTIFICATE_INVALID),
        (ssl.SSLError(1, "wrong version number"), FailureKind.HANDSHAKE_FAILED),
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), FailureKind.CLOSED),
        (ssl.SSLZeroReturnError(6, "closed"), FailureKind.CLOSED),
        (ssl.SSLError("The handshake operation timed out"), FailureKind.TIMED_OUT),
    ],
)
def test_tls_errors_are_not_read_as_errnos(error: ssl.SSLError, kind: FailureKind) -> None:
    """An SSLError's number is OpenSSL's: 1 is not EPERM there."""
    assert kind_of(error) is kind


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (socket.EAI_NONAME, FailureKind.NAME_NOT_FOUND),
        (socket.EAI_AGAIN, FailureKind.NO_ANSWER),
        (socket.EAI_FAIL, FailureKind.SERVER_FAILURE),
        (socket.EAI_MEMORY, FailureKind.OTHER),
    ],
)
def test_resolver_errors_are_not_read_as_errnos(code: int, kind: FailureKind) -> None:
    """A gaierror's number is getaddrinfo's own."""
    assert kind_of(socket.gaierror(code, "resolver")) is kind


def test_the_failure_says_operation_kind_and_words() -> None:
    """The failure is ready for the report: one line, in words, without the number."""
    failure = failed(Operation.CONNECT, OSError(errno.ECONNREFUSED, "Connection\nrefused")).failure
    assert (failure.operation, failure.kind, failure.detail) == (
        Operation.CONNECT,
        FailureKind.REFUSED,
        "Connection refused",
    )


def test_an_error_without_words_is_named_by_its_class() -> None:
    """A detail is never empty."""
    assert failed(Operation.RECEIVE, TimeoutError()).failure.detail == "TimeoutError"
