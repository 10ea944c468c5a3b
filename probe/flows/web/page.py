"""One page over one link, each step timed: resolve, connect, TLS, first byte, transfer (W3C Navigation Timing).

Every step is new for every page: no cache, no connection that was open already, no session resumed. A redirect is
followed to hosts that were agreed on before, and to none else.
"""

from __future__ import annotations

import ipaddress
import time
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urljoin, urlsplit

from probe.clock import NS_PER_S, Clock
from probe.errors import MeasurementFailedError
from probe.flows.dns import message as dns_message
from probe.flows.dns.query import resolve_host
from probe.flows.http.channel import ByteCount, Channel, lost_after, open_channel
from probe.flows.http.exchange import HTTP_1_1, HTTP_2, HttpConnection, HttpResponse
from probe.flows.http.messages import HttpRequest
from probe.flows.http.tls_client import client_context
from probe.links import IpVersion, Link
from probe.messages import FailureKind, Operation

REDIRECTS_MAX: Final = 5
# A result names its page; a redirect's address comes from a stranger.
URL_CHARACTERS_MAX: Final = 512
USER_AGENT: Final = "fleet-probe"
PORT_OF: Final = {"http": 80, "https": 443}
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})  # RFC 9110 section 15.4
_HEADERS: Final = (
    ("user-agent", USER_AGENT),
    ("accept", "*/*"),
    # A page that is compressed today and not tomorrow would be two series, and unpacking it costs a small computer.
    ("accept-encoding", "identity"),
    ("cache-control", "no-cache"),
)


@dataclass(frozen=True, slots=True)
class Address:
    """A page's address (RFC 3986), taken apart. `target` is path and query."""

    scheme: str
    host: str
    port: int
    target: str

    @classmethod
    def parse(cls, url: str) -> Address:
        """Take it apart. What stands before an @ or after a # is refused: a probe has no use for either.

        Raises:
            ValueError: it is not an http or https address, or has characters that no request may have.
        """
        parts = urlsplit(url)
        if parts.scheme not in PORT_OF or not parts.hostname or "@" in parts.netloc or parts.fragment:
            raise ValueError(f"{url!r} is not http://host[:port]/path or https://…")
        if not url.isascii() or not url.isprintable() or " " in url or len(url) > URL_CHARACTERS_MAX:
            raise ValueError(f"{url[:60]!r} is too long, or has characters that no request may have")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(parts.scheme, parts.hostname, parts.port or PORT_OF[parts.scheme], target)

    @property
    def authority(self) -> str:
        """The Host header's value (RFC 9110 section 7.2)."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == PORT_OF[self.scheme] else f"{name}:{self.port}"

    @property
    def host_is_address(self) -> bool:
        """Whether there is no name to resolve."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True

    def __str__(self) -> str:
        """The whole of it again."""
        return f"{self.scheme}://{self.authority}{self.target}"


@dataclass(frozen=True, slots=True)
class PageOrder:
    """What to fetch, and how.

    `time_out_s` is for each step: resolving, connecting, the handshake, the head, the body. `hosts` are those that a
    redirect may lead to, beside the page's own; empty with `follows_redirects` off. `allows_private` is for pages that
    stand behind a private address on purpose.
    """

    address: Address
    ip_version: IpVersion
    http_version: str
    time_out_s: float
    body_bytes_max: int
    follows_redirects: bool = False
    hosts: tuple[str, ...] = ()
    allows_private: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """What came of it. The times are those of the last fetch; `redirect_s` is what the ones before it took.

    `total_s` is the sum of all steps: what this program does between them is not the network's time.
    """

    address: Address
    server: str
    resolve_s: float | None
    total_s: float
    response: HttpResponse
    channel: Channel
    http_version: str
    redirects: int = 0
    redirect_s: float = 0.0


async def fetch(link: Link, order: PageOrder, clock: Clock, usage: ByteCount) -> Page:
    """Fetch it, and what it leads to.

    Raises:
        MeasurementFailedError: (resolve | connect | tls | request | transfer, ...) the first step that did not work;
            (resolve | connect, link_lost) the link went away between two steps.
        NotRunError: the link is down before the first; this device cannot judge certificates.
    """
    _load(order.address)
    address, redirects, redirect_s = order.address, 0, 0.0
    while True:
        page = await _fetch_one(link, order, address, clock, usage, is_first=redirects == 0)
        target = _redirect(page.response)
        if target is None or not order.follows_redirects:
            return replace(page, total_s=redirect_s + page.total_s, redirects=redirects, redirect_s=redirect_s)
        redirect_s += page.total_s
        redirects += 1
        address = _next_address(address, target, order, redirects)


def _load(address: Address) -> None:
    """Whatever takes time and is not the network's, before the clock starts."""
    dns_message.load()
    if address.scheme == "https":
        client_context()


async def _fetch_one(
    link: Link, order: PageOrder, address: Address, clock: Clock, usage: ByteCount, *, is_first: bool
) -> Page:
    began_ns = time.monotonic_ns()
    with lost_after(Operation.RESOLVE, has_begun=not is_first):
        server = await resolve_host(link, address.host, order.ip_version, order.time_out_s, usage)
    resolve_s = None if address.host_is_address else (time.monotonic_ns() - began_ns) / NS_PER_S
    if resolve_s is not None and not order.allows_private:
        _check_public(address.host, server)
    with lost_after(Operation.CONNECT, has_begun=not is_first or not address.host_is_address):
        channel = await open_channel(link, order.ip_version, server, address.port, order.time_out_s, usage)
    try:
        if address.scheme == "https":
            alpn = (HTTP_2, HTTP_1_1) if order.http_version == "2" else (HTTP_1_1,)
            await channel.secure(address.host, alpn, clock, order.time_out_s)
        connection = HttpConnection(channel)
        request = HttpRequest(address.scheme, address.authority, address.target, _HEADERS)
        response = await connection.ask(request, order.time_out_s, order.body_bytes_max)
    finally:
        channel.close()
    steps_s = (resolve_s, channel.connect_s, channel.tls_s, response.first_byte_s, response.transfer_s)
    total_s = sum(step_s for step_s in steps_s if step_s is not None)
    return Page(address, server, resolve_s, total_s, response, channel, connection.version)


def _check_public(host: str, server: str) -> None:
    """A public name that leads into a private network is the work of a portal or a filter on the line."""
    if not ipaddress.ip_address(server).is_global:
        detail = f"{host} was resolved to {server}, which is no public address"
        raise MeasurementFailedError(Operation.RESOLVE, FailureKind.INTERCEPTED, detail)


def _redirect(response: HttpResponse) -> str | None:
    """Where a response sends us; absent when it does not."""
    if response.head.status not in _REDIRECTS:
        return None
    return response.head.headers.get("location")


def _next_address(address: Address, target: str, order: PageOrder, redirects: int) -> Address:
    """Where to go on.

    Raises:
        MeasurementFailedError: (request, redirected) not to there; (request, malformed) that is no address.
    """
    try:
        following = Address.parse(urljoin(str(address), target).partition("#")[0])
    except ValueError as error:
        raise MeasurementFailedError(Operation.REQUEST, FailureKind.MALFORMED, f"redirected to {error}") from error
    is_known = following.host in {order.address.host, *order.hosts}
    is_downgrade = (address.scheme, following.scheme) == ("https", "http")
    if not is_known or is_downgrade or redirects > REDIRECTS_MAX:
        detail = f"redirected to {following.scheme}://{following.authority} ({redirects})"
        raise MeasurementFailedError(Operation.REQUEST, FailureKind.REDIRECTED, detail)
    return following
