"""The peer's side of TLS: its certificate, and nothing else of a handshake."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from probe.errors import ProbeError
from probe.messages import FailureKind


class ServerTls:
    """A `TlsSide` for every connection of the peer. `certificate` is a PEM file with its chain, `key` its key.

    The client's order of ciphers counts: it knows what its CPU does fast.

    Raises:
        ProbeError: the files cannot be read, or do not belong together.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._context.options |= ssl.OP_NO_RENEGOTIATION
        self._context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
        try:
            self._context.load_cert_chain(certificate, key)
        except OSError as error:  # ssl.SSLError is one
            raise ProbeError(f"cannot use {certificate} with {key}: {error.strerror or error}") from None

    def context(self) -> ssl.SSLContext:
        """One for all connections."""
        return self._context

    def wrap(self, context: ssl.SSLContext, sock: socket.socket) -> ssl.SSLSocket:
        """Lay TLS over an accepted socket; the handshake is still to come."""
        return context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=False)

    def may_try_again(self, used: ssl.SSLContext, problem: FailureKind) -> bool:  # noqa: ARG002 - `TlsSide`
        """No: it is the client who connects."""
        return False
