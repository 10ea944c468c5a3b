"""`web` and `dns` over a line of known delay: each step is as many round trips as it has, and a lost line is told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from authority import Authority
from clocks import Synchronised
from unbound import SIGNED, Unbound
from web_site import PAGE, WebSite, is_silent, misbehaving

from fleet_controller.lab.emulator import EmulatedLink, End
from fleet_controller.lab.namespaces import entered, namespace, run_ip
from fleet_controller.lab.profile import LinkProfile
from probe.config import LinkConfig
from probe.errors import MeasurementFailedError
from probe.links import Link
from probe.tasks.base import Context
from probe.tasks.dns import TASK as DNS
from probe.tasks.dns import DnsParameters
from probe.tasks.web import TASK as WEB
from probe.tasks.web import WebParameters

NEAR_ADDRESS, FAR_ADDRESS = "198.18.0.2", "198.18.0.1"  # RFC 2544's benchmarking range
RTT_S = 0.04
# Two processes, an emulator and two schedulers stand between the line and the figure; with kernel stamps a busy host
# adds the server's own lateness at most.
ERROR_S = 0.01


class Lab:
    """A line of 40 ms with a resolver and a web site behind it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.authority = Authority.make(folder / "authority")
        certificate = self.authority.issue("far", f"DNS:{SIGNED},IP:{FAR_ADDRESS}")
        self.near, self.far = (stack.enter_context(namespace(label)) for label in ("near", "far"))
        profile = LinkProfile(download_bps=100_000_000, upload_bps=50_000_000, delay_s=RTT_S)
        ends = End(self.near, "wan0", f"{NEAR_ADDRESS}/30"), End(self.far, "line0", f"{FAR_ADDRESS}/30")
        stack.enter_context(EmulatedLink(folder / "line", profile, *ends))
        with entered(self.far):
            self.resolver = stack.enter_context(Unbound(folder / "unbound", certificate, hosts=(FAR_ADDRESS,)))
            self.site = stack.enter_context(WebSite(folder / "nginx", certificate, hosts=(FAR_ADDRESS,)))

    async def measured(self, task: Any, parameters: Any) -> Any:
        """What a task says, from the near end."""
        link = LinkConfig(name="wan", interface="wan0", resolvers=(f"{FAR_ADDRESS}:{self.resolver.port}",))
        with entered(self.near):
            return await task.measure(Context(clock=Synchronised(), time_out_s=30, link=Link(link)), parameters)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One for all."""
    with ExitStack() as stack:
        yield Lab(tmp_path_factory.mktemp("lab"), stack)


@pytest.fixture(autouse=True)
def trusted(monkeypatch: pytest.MonkeyPatch, lab: Lab) -> None:
    """Our authority."""
    monkeypatch.setenv("SSL_CERT_FILE", str(lab.authority.file))


def round_trips(seconds: float | None) -> int:
    """How many round trips a step took; it must be a whole number of them."""
    assert seconds is not None
    number = round(seconds / RTT_S)
    assert seconds == pytest.approx(number * RTT_S, abs=ERROR_S)
    return number


@pytest.mark.parametrize("transport", ["udp", "tcp", "tls", "https"])
async def test_a_question_is_one_round_trip_over_every_transport(lab: Lab, transport: Any) -> None:
    """The connection and TLS 1.3 are one each beside it, so that the response times compare."""
    port = {"tls": lab.resolver.tls_port, "https": lab.resolver.https_port}.get(transport, lab.resolver.port)
    parameters = DnsParameters(name=SIGNED, transport=transport, resolver=f"{FAR_ADDRESS}:{port}")
    values = await lab.measured(DNS, parameters)
    assert round_trips(values.response_time_s) == 1
    if transport != "udp":
        assert round_trips(values.connect_s) == 1
    if transport in {"tls", "https"}:
        assert round_trips(values.tls_s) == 1


@pytest.mark.parametrize("http_version", ["1.1", "2"])
async def test_each_step_of_a_page_is_one_round_trip(lab: Lab, http_version: Any) -> None:
    """Connect, TLS, first byte; the kernel's own handshake time agrees."""
    url = f"https://{FAR_ADDRESS}:{lab.site.tls_port}/empty"
    values = await lab.measured(WEB, WebParameters(url=url, http_version=http_version))
    steps = (values.connect_s, values.tls_s, values.first_byte_s, values.handshake_rtt_s)
    assert [round_trips(step) for step in steps] == [1, 1, 1, 1]


@pytest.mark.parametrize("http_version", ["1.1", "2"])
async def test_a_page_that_needs_two_windows(lab: Lab, http_version: Any) -> None:
    """20 KiB do not fit into TCP's first ten segments: head and body take two round trips.

    With HTTP/1.1 both are those of the first byte: nginx puts the head into one TLS record with 16 KiB of the page, and
    none of it can be read before all of it is there.
    """
    url = f"https://{FAR_ADDRESS}:{lab.site.tls_port}/page"
    values = await lab.measured(WEB, WebParameters(url=url, http_version=http_version))
    assert values.body_bytes == len(PAGE)
    assert round_trips(values.first_byte_s + values.transfer_s) == 2
    assert round_trips(values.first_byte_s) == (2 if http_version == "1.1" else 1)


async def test_a_name_is_resolved_over_the_line(lab: Lab) -> None:
    """It leads to an address that is not ours to reach: what counts is that the line was asked."""
    with pytest.raises(MeasurementFailedError) as caught:
        await lab.measured(WEB, WebParameters(url=f"http://{SIGNED}/"))
    assert (caught.value.failure.operation, caught.value.failure.kind) == ("resolve", "intercepted")


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_line_that_goes_away_under_it(lab: Lab, scheme: str) -> None:
    """The interface goes down while the server is silent: link_lost, whatever step it was in."""
    with entered(lab.far):
        server = misbehaving(is_silent, host=FAR_ADDRESS)
        port = await server.__aenter__()
    try:
        parameters = WebParameters(url=f"{scheme}://{FAR_ADDRESS}:{port}/", time_out_s=1)
        fetching = asyncio.create_task(lab.measured(WEB, parameters))
        await asyncio.sleep(0.3)
        run_ip("-n", lab.near, "link", "set", "wan0", "down")
        with pytest.raises(MeasurementFailedError) as caught:
            await fetching
    finally:
        run_ip("-n", lab.near, "link", "set", "wan0", "up")
        await server.__aexit__(None, None, None)
    assert caught.value.failure.kind == "link_lost"
