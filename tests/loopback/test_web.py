"""The task `web` against the real nginx, and against servers that do what servers in the field do."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from authority import Authority
from clocks import Synchronised, Unsynchronised
from web_site import PAGE, Behaviour, WebSite, is_silent, misbehaving, never_ends, resets, says

from fleet_controller.lab.services import Dnsmasq, free_port
from probe.clock import SystemClock
from probe.config import LinkConfig, Targets
from probe.errors import MeasurementFailedError, NotRunError
from probe.links import Link
from probe.measure.targets import TargetGuard
from probe.messages import NotRunReason, Peer
from probe.tasks.base import Context
from probe.tasks.web import TASK, WebParameters, WebValues

NAME, PUBLIC_NAME = "page.test", "away.test"
OK = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signs here."""
    return Authority.make(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[WebSite]:
    """Pages by nginx."""
    certificate = authority.issue("site", f"DNS:{NAME},IP:127.0.0.1,IP:::1")
    with WebSite(tmp_path_factory.mktemp("nginx"), certificate) as service:
        yield service


@pytest.fixture(scope="module")
def dnsmasq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dnsmasq]:
    """A resolver that knows the page's name."""
    names = {NAME: "127.0.0.1,::1", "other.test": "127.0.0.1", "lost.test": "127.0.0.1"}
    with Dnsmasq(tmp_path_factory.mktemp("dnsmasq"), names=names) as service:
        yield service


@pytest.fixture(autouse=True)
def bound_world(monkeypatch: pytest.MonkeyPatch, authority: Authority) -> None:
    """Our authority is trusted; a proxy that is not there is in the environment; the host's resolver refuses."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    real = socket.getaddrinfo

    def guarded(host: Any, *arguments: Any, **options: Any) -> Any:
        assert host in {"127.0.0.1", "::1", None}, f"getaddrinfo was called for {host}"
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", guarded)


def context_of(dnsmasq: Dnsmasq, peer: Peer | None = None, clock: SystemClock | None = None) -> Context:
    """A link over loopback."""
    config = LinkConfig(
        name="wan",
        interface="lo",
        source_address="127.0.0.1",
        source_address_v6="::1",
        resolvers=(f"{dnsmasq.host}:{dnsmasq.port}",),
    )
    return Context(clock=clock or Synchronised(), time_out_s=30, link=Link(config), peer=peer)


async def fetched(dnsmasq: Dnsmasq, url: str, **parameters: Any) -> WebValues:
    """What the task says of a page."""
    return await TASK.measure(context_of(dnsmasq), WebParameters(url=url, allow_private=True, **parameters))


async def failure(dnsmasq: Dnsmasq, url: str, **parameters: Any) -> tuple[str, str]:
    """Which operation fails, and how; within 2 s for steps of 0.3 s."""
    wanted = {"time_out_s": 0.3, **parameters}
    with pytest.raises(MeasurementFailedError) as caught:
        async with asyncio.timeout(2):
            await fetched(dnsmasq, url, **wanted)
    return caught.value.failure.operation.value, caught.value.failure.kind.value


@pytest.mark.parametrize(("host", "version"), [("127.0.0.1", 4), ("[::1]", 6)])
async def test_a_plain_page(site: WebSite, dnsmasq: Dnsmasq, host: str, version: Any) -> None:
    """Over both IP versions: what came, what it cost, how long each step took, and nothing of steps there were not."""
    context = context_of(dnsmasq)
    parameters = WebParameters(url=f"http://{host}:{site.port}/page", ip_version=version)
    values = await TASK.measure(context, parameters)
    assert (values.status, values.http_version_used, values.server) == (200, "1.1", host.strip("[]"))
    assert (values.body_bytes, values.body_is_complete) == (len(PAGE), True)
    assert values.content_sha256 == hashlib.sha256(PAGE).hexdigest()[:16]
    assert (values.resolve_s, values.tls_s, values.tls_version, values.redirect_s) == (None, None, None, None)
    assert len(PAGE) < values.wire_bytes == context.usage.received_bytes < len(PAGE) + 500
    assert 0 < values.connect_s + values.first_byte_s + values.transfer_s <= values.total_s < 5
    assert values.handshake_rtt_s is not None


@pytest.mark.parametrize(("wanted", "version"), [("2", 4), ("1.1", 4), ("2", 6)])
async def test_a_page_by_tls(site: WebSite, dnsmasq: Dnsmasq, wanted: Any, version: Any) -> None:
    """Its name resolved over the link, HTTP/2 where offered, and what is known of the certificate."""
    url = f"https://{NAME}:{site.tls_port}/page"
    values = await fetched(dnsmasq, url, http_version=wanted, ip_version=version)
    assert (values.http_version_used, values.tls_version, values.url) == (wanted, "TLSv1.3", url)
    assert (values.body_bytes, values.body_is_complete) == (len(PAGE), True)
    assert values.resolve_s is not None
    assert values.tls_s is not None
    assert values.resolve_s + values.connect_s + values.tls_s + values.first_byte_s <= values.total_s
    assert values.certificate_days_left == pytest.approx(2, abs=0.1)
    assert values.certificate_issuer == "Lab Authority"


async def test_a_page_of_a_peer(site: WebSite, dnsmasq: Dnsmasq) -> None:
    """The peer says where, the parameters say which page; both a url and a peer, or neither, is no order."""
    peer = Peer(name="site", host="127.0.0.1", http_port=site.tls_port, tls=True)
    values = await TASK.measure(context_of(dnsmasq, peer), WebParameters(path="/page"))
    assert values.url == f"https://127.0.0.1:{site.tls_port}/page"
    for url, one in (("http://127.0.0.1/", peer), (None, None)):
        with pytest.raises(NotRunError) as caught:
            await TASK.measure(context_of(dnsmasq, one), WebParameters(url=url))
        assert caught.value.not_run.reason is NotRunReason.BAD_PARAMETERS


@pytest.mark.parametrize(
    ("path", "parameters", "said"),
    [
        ("/empty", {}, None),
        ("/empty", {"expect_status": 204}, None),
        ("/page", {"expect_sha256": hashlib.sha256(PAGE).hexdigest()}, None),
        ("/moved", {"expect_status": 302}, None),
        ("/moved", {"follow_redirects": True}, None),
        ("/page", {"expect_status": 204}, ("request", "http_status")),
        ("/missing", {}, ("request", "http_status")),
        ("/busy", {}, ("request", "http_status")),
        ("/moved", {}, ("request", "redirected")),
        ("/away", {}, ("request", "redirected")),
        ("/away", {"follow_redirects": True}, ("request", "redirected")),
        ("/loop", {"follow_redirects": True}, ("request", "redirected")),
        ("/nowhere", {"follow_redirects": True}, ("request", "malformed")),
        ("/far", {"follow_redirects": True}, ("request", "malformed")),
        ("/page", {"expect_sha256": "0" * 16}, ("transfer", "intercepted")),
    ],
)
async def test_what_a_site_says(
    site: WebSite, dnsmasq: Dnsmasq, path: str, parameters: dict[str, Any], said: tuple[str, str] | None
) -> None:
    """A status, a redirect or a content that was not asked for is a failure; so is a portal's redirect."""
    url = f"http://127.0.0.1:{site.port}{path}"
    if said is None:
        await fetched(dnsmasq, url, **parameters)
    else:
        assert await failure(dnsmasq, url, **parameters) == said


async def test_redirects_are_followed_within_bounds(site: WebSite, dnsmasq: Dnsmasq) -> None:
    """The last page's steps, the time and the number of those before it; never from https to http."""
    values = await fetched(dnsmasq, f"http://127.0.0.1:{site.port}/moved", follow_redirects=True)
    assert (values.redirects, values.body_bytes) == (1, len(PAGE))
    assert values.redirect_s is not None
    assert values.redirect_s + values.first_byte_s < values.total_s
    url = f"https://{NAME}:{site.tls_port}/down"
    assert await failure(dnsmasq, url, follow_redirects=True) == ("request", "redirected")


async def test_a_page_is_read_up_to_its_bound(site: WebSite, dnsmasq: Dnsmasq) -> None:
    """More is not read, and the result says that it is a part. A page without an end has one too."""
    values = await fetched(dnsmasq, f"https://127.0.0.1:{site.tls_port}/page", max_bytes=5000)
    assert (values.body_bytes, values.body_is_complete) == (5000, False)
    async with misbehaving(says(OK + b"\r\n", never_ends)) as port:
        values = await fetched(dnsmasq, f"http://127.0.0.1:{port}/", max_bytes=300_000)
    assert (values.body_bytes, values.body_is_complete) == (300_000, False)


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (is_silent, ("request", "timed_out")),
        (resets, ("request", "reset")),
        (says(b""), ("request", "closed")),
        (says(b"HTTP/1.1 200"), ("request", "closed")),
        (says(b"SSH-2.0-dropbear\r\n"), ("request", "malformed")),
        (says(b"HTTP/1.1 abc\r\n\r\n"), ("request", "malformed")),
        (says(OK + b"Content-Length: many\r\n\r\n"), ("request", "malformed")),
        (says(OK + b"X: " + b"x" * 100_000 + b"\r\n\r\n"), ("request", "malformed")),
        (says(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 500, is_silent), ("request", "timed_out")),
        (says(OK + b"Content-Length: 99\r\n\r\nhalf"), ("transfer", "closed")),
        (says(OK + b"Content-Length: 99\r\n\r\nhalf", is_silent), ("transfer", "stalled")),
        (says(OK + b"Content-Length: 99\r\n\r\nhalf", resets), ("transfer", "reset")),
        (says(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"), ("transfer", "malformed")),
    ],
    ids=lambda value: None if callable(value) else "_".join(value),
)
async def test_what_a_server_does_wrong(dnsmasq: Dnsmasq, behaviour: Behaviour, said: tuple[str, str]) -> None:
    """Each has its operation and kind, in time."""
    async with misbehaving(behaviour) as port:
        assert await failure(dnsmasq, f"http://127.0.0.1:{port}/") == said


async def test_a_page_that_ends_with_its_connection(dnsmasq: Dnsmasq) -> None:
    """HTTP/1.0 said so by closing."""
    async with misbehaving(says(b"HTTP/1.0 200 OK\r\n\r\nwhole")) as port:
        values = await fetched(dnsmasq, f"http://127.0.0.1:{port}/")
    assert (values.body_bytes, values.body_is_complete) == (5, True)


async def test_nobody_is_there(dnsmasq: Dnsmasq) -> None:
    """A closed port refuses; a full queue says nothing."""
    assert await failure(dnsmasq, f"http://127.0.0.1:{free_port()}/") == ("connect", "refused")
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for waiting in (first, second):
            waiting.settimeout(0)
            waiting.connect_ex(full.getsockname())
        await asyncio.sleep(0.05)
        assert await failure(dnsmasq, f"http://127.0.0.1:{full.getsockname()[1]}/") == ("connect", "timed_out")


async def test_names(dnsmasq: Dnsmasq, site: WebSite) -> None:
    """One that does not exist, one without such an address, one that no name can be, one that leads home."""
    assert await failure(dnsmasq, f"http://none.{NAME}/") == ("resolve", "name_not_found")
    assert await failure(dnsmasq, "http://other.test/", ip_version=6) == ("resolve", "no_answer")
    with pytest.raises(NotRunError) as caught:
        await fetched(dnsmasq, f"http://{'x' * 64}.test/")
    assert caught.value.not_run.reason is NotRunReason.BAD_PARAMETERS
    with pytest.raises(MeasurementFailedError) as failed:
        await TASK.measure(context_of(dnsmasq), WebParameters(url=f"http://{NAME}:{site.port}/page"))
    assert (failed.value.failure.operation, failed.value.failure.kind) == ("resolve", "intercepted")


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (is_silent, ("tls", "timed_out")),
        (resets, ("tls", "reset")),
        (never_ends, ("tls", "handshake_failed")),
    ],
)
async def test_a_handshake_that_does_not_work(dnsmasq: Dnsmasq, behaviour: Behaviour, said: tuple[str, str]) -> None:
    """Silence, a reset, another protocol."""
    async with misbehaving(behaviour) as port:
        assert await failure(dnsmasq, f"https://127.0.0.1:{port}/") == said


async def test_a_handshake_that_is_cut_off(dnsmasq: Dnsmasq) -> None:
    """Closed after the first bytes."""

    async def cuts(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read(65_536)

    async with misbehaving(cuts) as port:
        assert await failure(dnsmasq, f"https://127.0.0.1:{port}/") == ("tls", "closed")


async def test_certificates_that_are_not_good(dnsmasq: Dnsmasq, authority: Authority, tmp_path: Path) -> None:
    """Expired, for another name, by a stranger: each is certificate_invalid."""
    stranger = Authority.make(tmp_path / "stranger")
    for certificate in (
        authority.issue("expired", f"DNS:{NAME}", days=-1),
        authority.issue("other", "DNS:other.test"),
        stranger.issue("strange", f"DNS:{NAME}"),
    ):
        async with misbehaving(says(OK + b"\r\n"), certificate) as port:
            assert await failure(dnsmasq, f"https://{NAME}:{port}/") == ("tls", "certificate_invalid")


async def test_a_wrong_clock_judges_no_certificate(dnsmasq: Dnsmasq, authority: Authority) -> None:
    """An expired certificate seen by a clock that nobody vouches for says nothing of the line."""
    expired = authority.issue("late", "IP:127.0.0.1", days=-1)
    async with misbehaving(says(OK + b"\r\n"), expired) as port:
        context = context_of(dnsmasq, clock=Unsynchronised())
        with pytest.raises(NotRunError) as caught:
            await TASK.measure(context, WebParameters(url=f"https://127.0.0.1:{port}/"))
    assert caught.value.not_run.reason is NotRunReason.CLOCK


async def test_without_authorities_nothing_is_judged(
    dnsmasq: Dnsmasq, site: WebSite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A device without a certificate store would call every site invalid."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "absent"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    with pytest.raises(NotRunError) as caught:
        await fetched(dnsmasq, f"https://127.0.0.1:{site.tls_port}/page")
    assert caught.value.not_run.reason is NotRunReason.TOOL_MISSING


async def test_http_2_that_goes_wrong(dnsmasq: Dnsmasq, authority: Authority) -> None:
    """A server that agrees on HTTP/2 and then closes, or talks HTTP/1.1."""
    for content, kind in ((b"", "closed"), (b"HTTP/1.1 400 Bad Request\r\n\r\n", "malformed")):

        async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, content: bytes = content) -> None:
            await reader.read(65_536)
            writer.write(content)
            await writer.drain()

        certificate = authority.issue("two", "IP:127.0.0.1")
        async with misbehaving(behave, certificate, alpn="h2") as port:
            assert await failure(dnsmasq, f"https://127.0.0.1:{port}/") == ("request", kind)


async def test_a_server_that_says_goodbye_with_its_answer(
    dnsmasq: Dnsmasq, authority: Authority, tmp_path: Path
) -> None:
    """Nginx that takes one request on a connection sends GOAWAY before the head: the page is as good as any."""
    certificate = authority.issue("leaving", "IP:127.0.0.1")
    with WebSite(tmp_path / "nginx", certificate, hosts=("127.0.0.1",), requests_max=1) as leaving:
        values = await fetched(dnsmasq, f"https://127.0.0.1:{leaving.tls_port}/page")
    assert (values.status, values.http_version_used) == (200, "2")
    assert (values.body_bytes, values.body_is_complete) == (len(PAGE), True)


def test_every_host_that_a_fetch_can_reach_is_a_target() -> None:
    """The url's host and those of redirects; an address hidden in a url is still one."""
    parameters = WebParameters(url="https://Page.Test:8443/x", redirect_hosts=("cdn.test",))
    assert TASK.targets(parameters) == ("page.test", "cdn.test")
    assert TASK.targets(WebParameters(url="http://[2001:db8::1]/")) == ("2001:db8::1",)
    guard = TargetGuard(Targets(domains=("page.test",)))
    guard.check(TASK.targets(parameters)[0])
    with pytest.raises(NotRunError):
        guard.check(TASK.targets(parameters)[1])


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://page.test/", "http:///x", "page.test", "http://user@page.test/", "http://page.test/#part"),
        *("http://page.test/a b", "http://page.test/\r\nX: y", "http://page.test:99999/", "http://pagé.test/", ""),
    ],
)
def test_what_is_no_page_is_refused_before_it_runs(url: str) -> None:
    """Parameters are checked where they are read."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"url": url}, WebParameters)


async def test_a_cancelled_fetch_leaves_nothing_behind(dnsmasq: Dnsmasq) -> None:
    """No socket is left open."""

    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = open_files()
    async with misbehaving(is_silent) as port:
        fetching = asyncio.create_task(fetched(dnsmasq, f"http://127.0.0.1:{port}/"))
        await asyncio.sleep(0.1)
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
    assert open_files() <= before
