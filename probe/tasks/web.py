"""Task `web`: how long one small page takes, step by step, and whether it is the page that it should be.

Resolving, connecting, TLS, the first byte and the whole of it over the link alone: names from its resolvers, sockets
bound to it, no proxy, no cache. A page per result; several pages are several actions of a schedule, or one action with
several peers, whose names become the tag that tells the series apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final, Literal

import msgspec

from probe.errors import MeasurementFailedError
from probe.flows.http.channel import blame_link
from probe.flows.http.exchange import HttpResponse
from probe.flows.web.page import REDIRECTS_MAX, URL_CHARACTERS_MAX, Address, Page, PageOrder, fetch
from probe.messages import FailureKind, Operation, Peer
from probe.tasks.base import Context, Load, Parameters, TaskType, Values
from probe.tasks.dns import FullName, HttpPath
from probe.tasks.fit import PEER_FIELD, Misfit, MisfitError, host_misfits, peer_misfits, refuse

# Resolve, connect, handshake, head and body of each fetch.
_STEPS: Final = 5
_MARGIN_S: Final = 1.0
_OK: Final = range(200, 300)
_REDIRECT: Final = range(300, 400)
# 64 bits of a SHA-256: two pages that share them by chance will not be met.
_DIGEST_DIGITS: Final = 16


class WebParameters(Parameters, frozen=True):
    """Which page, and how.

    The page is `url`, or `path` at the action's peer (its `host`, `http_port` and `tls`). `http_version` is the best
    that is offered to an https server. `expect_status` absent takes any 2xx. `expect_sha256` is how the digest of the
    page begins: anything else is not this page. `time_out_s` is for each step. Redirects are a failure unless
    `follow_redirects`; then they may lead to the page's own host and to `redirect_hosts`. `allow_private` lets a
    name lead to a private address.
    """

    url: Annotated[str, msgspec.Meta(max_length=URL_CHARACTERS_MAX)] | None = None
    path: HttpPath = "/"
    ip_version: Literal[4, 6] = 4
    http_version: Literal["1.1", "2"] = "2"
    expect_status: Annotated[int, msgspec.Meta(ge=200, le=599)] | None = None
    expect_sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{8,64}$")] | None = None
    max_bytes: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] = 1_000_000
    time_out_s: Annotated[float, msgspec.Meta(gt=0, le=30)] = 10.0
    follow_redirects: bool = False
    redirect_hosts: Annotated[tuple[FullName, ...], msgspec.Meta(max_length=8)] = ()
    allow_private: bool = False

    def __post_init__(self) -> None:
        """Refuse what is no address of a page, and what says two things."""
        if self.url is not None:
            Address.parse(self.url)
            if self.path != "/":
                problem = "is of a page of the peer, and `url` has its own"
                raise MisfitError(Misfit("path", problem, "remove one of them"))


class WebValues(Values, frozen=True):
    """What a page took.

    In the words of W3C Navigation Timing: `resolve_s` is domainLookupEnd - domainLookupStart (absent when the host is
    an address), `connect_s` the TCP part and `tls_s` the TLS part of connectEnd - connectStart, `first_byte_s` is
    responseStart - requestStart, `transfer_s` responseEnd - responseStart, `redirect_s` what the fetches before the
    last one took. The steps are those of the last fetch; `total_s` is the sum of all of them, and leaves out what the
    probe itself does in between. `handshake_rtt_s` is the kernel's own measure of SYN to SYN/ACK.

    `body_bytes` counts the page, `wire_bytes` what TCP delivered for it (last fetch; TLS and heads included).
    `content_sha256` is the beginning of the digest of what was read; `body_is_complete` says whether the page ended
    within `max_bytes`.
    """

    url: str
    server: str
    status: int
    http_version_used: str
    total_s: float
    connect_s: float
    first_byte_s: float
    transfer_s: float
    body_bytes: int
    wire_bytes: int
    body_is_complete: bool
    content_sha256: str
    resolve_s: float | None = None
    tls_s: float | None = None
    handshake_rtt_s: float | None = None
    redirects: int = 0
    redirect_s: float | None = None
    tls_version: str | None = None
    certificate_days_left: float | None = None
    certificate_issuer: str | None = None


async def measure(context: Context, parameters: WebParameters) -> WebValues:
    """Fetch it once.

    Raises:
        MeasurementFailedError: (resolve | connect | tls | request | transfer, ...) the step that did not work;
            (request, redirected | http_status) another status; (resolve | transfer, intercepted) a name
            that leads into a private network, a page that is another; (..., link_lost) the link went away, between
            two steps too.
        NotRunError: the link is down before the first step; neither page nor peer is given, or both; this device cannot
            judge certificates.
    """
    link = context.need_link()
    refuse(_misfits(parameters, context.peer))
    order = _order(parameters, _address(parameters, context.peer))
    try:
        page = await fetch(link, order, context.clock, context.usage)
        _check_status(page.response, parameters.expect_status)
        _check_content(page.response, parameters.expect_sha256)
    except MeasurementFailedError as error:
        raise blame_link(link, error) from error
    return _values(page)


def _misfits(parameters: WebParameters, peer: Peer | None) -> Iterator[Misfit]:
    """A page is named once, and its host can be reached by the IP version that is asked for."""
    if parameters.url is None and peer is None:
        yield Misfit("url", "no page is named: neither a url nor a peer", "give one of them", "https://example.vn/")
    elif parameters.url is not None and peer is not None:
        problem = "the page is named twice: by `url`, and as one of the peer's"
        yield Misfit(PEER_FIELD, problem, "remove the peer or the url")
    elif parameters.url is not None:
        yield from host_misfits("url", Address.parse(parameters.url).host, parameters.ip_version)
    yield from peer_misfits(peer, parameters.ip_version)
    for host in parameters.redirect_hosts:
        yield from host_misfits("redirect_hosts", host, parameters.ip_version)


def _address(parameters: WebParameters, peer: Peer | None) -> Address:
    if peer is not None:
        return Address("https" if peer.tls else "http", peer.host.lower().rstrip("."), peer.http_port, parameters.path)
    return Address.parse(parameters.url or "")


def _order(parameters: WebParameters, address: Address) -> PageOrder:
    return PageOrder(
        address=address,
        ip_version=parameters.ip_version,
        http_version=parameters.http_version,
        time_out_s=parameters.time_out_s,
        body_bytes_max=parameters.max_bytes,
        follows_redirects=parameters.follow_redirects,
        hosts=tuple(host.lower().rstrip(".") for host in parameters.redirect_hosts),
        allows_private=parameters.allow_private,
    )


def _check_status(response: HttpResponse, wanted: int | None) -> None:
    status = response.head.status
    if status == wanted or (wanted is None and status in _OK):
        return
    if status in _REDIRECT:
        target = response.head.headers.get("location", "nowhere")
        raise MeasurementFailedError(Operation.REQUEST, FailureKind.REDIRECTED, f"{status} to {target}")
    expected = "" if wanted is None else f" and not {wanted}"
    raise MeasurementFailedError(Operation.REQUEST, FailureKind.HTTP_STATUS, f"the server answered {status}{expected}")


def _check_content(response: HttpResponse, wanted: str | None) -> None:
    if wanted is not None and not response.sha256.startswith(wanted):
        detail = f"another page came: {response.body_bytes} bytes, digest {response.sha256[:_DIGEST_DIGITS]}"
        raise MeasurementFailedError(Operation.TRANSFER, FailureKind.INTERCEPTED, detail)


def _values(page: Page) -> WebValues:
    channel, response = page.channel, page.response
    tls = channel.tls
    return WebValues(
        url=str(page.address),
        server=page.server,
        status=response.head.status,
        http_version_used=page.http_version,
        total_s=page.total_s,
        connect_s=channel.connect_s,
        first_byte_s=response.first_byte_s,
        transfer_s=response.transfer_s,
        body_bytes=response.body_bytes,
        wire_bytes=channel.received_bytes,
        body_is_complete=response.is_complete,
        content_sha256=response.sha256[:_DIGEST_DIGITS],
        resolve_s=page.resolve_s,
        tls_s=channel.tls_s,
        handshake_rtt_s=channel.handshake_rtt_s,
        redirects=page.redirects,
        redirect_s=page.redirect_s if page.redirects else None,
        tls_version=None if tls is None else tls.version,
        certificate_days_left=None if tls is None else tls.certificate_days_left,
        certificate_issuer=None if tls is None else tls.issuer,
    )


def _time_out_s(parameters: WebParameters) -> float:
    fetches = 1 + REDIRECTS_MAX * parameters.follow_redirects
    return parameters.time_out_s * _STEPS * fetches + _MARGIN_S


def _targets(parameters: WebParameters) -> tuple[str, ...]:
    """Every host that a fetch can reach: what the device's owner has not allowed is refused before anything is sent."""
    own = () if parameters.url is None else (Address.parse(parameters.url).host,)
    return (*own, *parameters.redirect_hosts)


TASK = TaskType(
    name="web",
    targets=_targets,
    misfits=_misfits,
    # 1: one page by HTTP/1.1 or 2 over TCP, nothing kept from the one before.
    version=1,
    parameters=WebParameters,
    values=WebValues,
    measure=measure,
    load=Load.LIGHT,
    time_out_s=_time_out_s,
    needs_peer=False,
    baseline_fields=("total_s", "resolve_s", "connect_s", "tls_s", "first_byte_s"),
)
