"""Whom a TLS connection trusts, and which cipher it asks for: what the streams of one transfer share."""

from __future__ import annotations

import functools
import socket
import ssl
from pathlib import Path
from typing import Final

from probe.errors import NotRunError
from probe.flows.bulk.wire import TlsTerms
from probe.flows.http.tls_client import sni_of
from probe.messages import FailureKind, NotRunReason

_CPU_INFO: Final = Path("/proc/cpuinfo")
_CHACHA20: Final = "ECDHE+CHACHA20"
_EVERYTHING: Final = "ECDHE+AES128+AESGCM:ECDHE+CHACHA20:ECDHE+AESGCM"


class TlsContexts:
    """The contexts of one transfer's connections.

    A CPU without AES instructions (every Raspberry Pi before the 5) asks for ChaCha20 alone, and for TLS 1.2, because
    Python cannot choose among the suites of TLS 1.3. A peer that refuses this is asked again with everything allowed.
    `has_aes` is found out where it is not given.
    """

    def __init__(self, terms: TlsTerms, *, has_aes: bool | None = None) -> None:
        self._server_name, self._ca_file = sni_of(terms.server_name), terms.ca_file
        self._prefers_chacha20 = not (cpu_has_aes() if has_aes is None else has_aes)
        self._context: ssl.SSLContext | None = None

    def context(self) -> ssl.SSLContext:
        """The context for the next connection.

        Raises:
            NotRunError: the file of authorities cannot be read (`tool_missing`).
        """
        if self._context is None:
            self._context = self._make()
        return self._context

    def wrap(self, context: ssl.SSLContext, sock: socket.socket) -> ssl.SSLSocket:
        """Lay TLS over a connected socket; the handshake is still to come.

        Raises:
            OSError: the connection is gone already.
            ValueError: the server's name can stand in no certificate.
        """
        return context.wrap_socket(
            sock, server_hostname=self._server_name, do_handshake_on_connect=False, suppress_ragged_eofs=False
        )

    def may_try_again(self, used: ssl.SSLContext, problem: FailureKind) -> bool:
        """Whether a connection whose handshake failed so with `used` may succeed when it is opened anew."""
        if problem is FailureKind.CERTIFICATE_INVALID:
            return False
        if used is not self._context:
            return True  # another stream has found it out meanwhile
        if not self._prefers_chacha20:
            return False
        self._prefers_chacha20, self._context = False, None
        return True

    def _make(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self._ca_file)
        except OSError as error:  # an unreadable file, or one without a certificate
            detail = f"the authorities in {self._ca_file} cannot be read: {error}"
            raise NotRunError(NotRunReason.TOOL_MISSING, detail) from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_ciphers(_CHACHA20 if self._prefers_chacha20 else _EVERYTHING)
        if self._prefers_chacha20:
            context.maximum_version = ssl.TLSVersion.TLSv1_2
        return context


@functools.cache
def cpu_has_aes() -> bool:
    """Whether the CPU has AES instructions; where the kernel does not say, ChaCha20 is good on any."""
    try:
        return says_aes(_CPU_INFO.read_text(encoding="ascii", errors="replace"))
    except OSError:
        return False


def says_aes(cpu_info: str) -> bool:
    """Whether /proc/cpuinfo lists `aes`: among the `flags` of x86, the `Features` of ARM."""
    for line in cpu_info.splitlines():
        name, _, words = line.partition(":")
        if name.strip() in {"flags", "Features"}:
            return "aes" in words.split()
    return False
