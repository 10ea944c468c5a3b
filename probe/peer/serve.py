"""The measurement peer for labs and small fleets: it answers STAMP and serves the HTTP source and sink.

In production nginx serves the bulk (`return 204` for the sink, a large random file for the source); this one needs
nothing but Python and fills 10 Gbit/s.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from probe import __version__
from probe.errors import ProbeError
from probe.peer.http_connection import Limits
from probe.peer.http_peer import HttpPeer, is_without_ipv6
from probe.peer.reflector import Reflector
from probe.peer.server_tls import ServerTls

__all__ = ["HttpPeer", "Limits", "PeerSettings", "PortError", "serve"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """Where to answer, and how much.

    An empty `host` means every address of IPv4 and IPv6; port 0 means any free one. 862 is STAMP's port (RFC 8762
    section 4.1). With `stamp_keys` STAMP is authenticated, and answers nobody else. With `tls` the
    HTTP port speaks TLS only.
    """

    host: str = ""
    http_port: int = 80
    stamp_port: int = 862
    limits: Limits = field(default_factory=Limits)
    stamp_keys: tuple[bytes, ...] = ()
    tls: ServerTls | None = None


class PortError(ProbeError):
    """A port that cannot be opened: which, why, and what to do about it."""

    def __init__(self, what: str, host: str, port: int, error: OSError | ValueError) -> None:
        where = f"{what} port {port or '(any)'} of {host or 'every address'}"
        words = error.strerror if isinstance(error, OSError) else str(error)
        super().__init__(f"cannot open {where}: {words} ({_remedy(what, host, port, error)})")


def _remedy(what: str, host: str, port: int, error: OSError | ValueError) -> str:
    option = f"--{what.lower()}-port"
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EADDRINUSE:
        protocol = "t" if what == "HTTP" else "u"
        who = f"`ss -{protocol}lnp sport = {port}` says who"
        return f"another program has it, {who}: stop that one, or choose another port with {option}"
    if number in {errno.EACCES, errno.EPERM}:
        return f"low ports are root's: run it as root or with CAP_NET_BIND_SERVICE, or choose {option} 1024 or above"
    return f"{host} is no address of this host: see `ip address`, or leave --host out"


@contextlib.contextmanager
def _opening(what: str, settings_host: str, port: int) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise PortError(what, settings_host, port, error) from error


async def serve(settings: PeerSettings, ready: Callable[[int, int], None] | None = None) -> None:
    """Answer until cancelled; `ready` hears the HTTP and the STAMP port once both are open.

    Raises:
        PortError: a port is in use or not for us, or `host` is no address of this machine.
    """
    http = HttpPeer(settings.limits, __version__, settings.tls)
    async with contextlib.AsyncExitStack() as stack:
        with _opening("HTTP", settings.host, settings.http_port):
            http.start(settings.host, settings.http_port)
        stack.push_async_callback(asyncio.to_thread, http.stop)
        with _opening("STAMP", settings.host, settings.stamp_port):
            stamp_port = await _start_reflectors(stack, settings)
        _LOG.info("peer started: HTTP on port %d, STAMP on port %d", http.port, stamp_port)
        if ready is not None:
            ready(http.port, stamp_port)
        await asyncio.Event().wait()


async def _start_reflectors(stack: contextlib.AsyncExitStack, settings: PeerSettings) -> int:
    """One reflector for an address, one for each family of this host for none."""
    first = Reflector(keys=settings.stamp_keys)
    await first.start(settings.host or "0.0.0.0", settings.stamp_port)  # noqa: S104 - a peer is there for everybody
    stack.push_async_callback(first.stop)
    if not settings.host:
        await _start_ipv6(stack, first.port, settings.stamp_keys)
    return first.port


async def _start_ipv6(stack: contextlib.AsyncExitStack, port: int, keys: tuple[bytes, ...]) -> None:
    reflector = Reflector(keys=keys)
    try:
        await reflector.start("::", port)
    except OSError as error:
        if not is_without_ipv6(error):
            raise
        return
    stack.push_async_callback(reflector.stop)
