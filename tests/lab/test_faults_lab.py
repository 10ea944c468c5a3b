"""What each task says of each way in which the network can say no: the clean path first, then with one fault.

A row is a task, a fault, and the one outcome that is right for it: operation and kind of a failure, or values; and by
when it must be there. The servers are real ones at the other end of a line of 40 Mbit/s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any, Final

import fault_rows
import pytest
from fault_site import (
    ABSENT,
    DROPPED,
    GATEWAY_GONE,
    HTTPS_PORT,
    PEER_NAME,
    PROHIBITED,
    UNREACHABLE,
    Fault,
    Row,
    Site,
    cut,
    peer,
    removed,
    switched_off,
    unaddressed,
)
from faulty_servers import Tcp, Udp
from lab_site import FAR

from probe.messages import Result

SHORT: Final = {"max_duration_s": 1.0}
LONG: Final = {"max_duration_s": 10.0, "mode": "full"}
DOWN, UP = {"direction": "download"}, {"direction": "upload"}
NONE_BACK: Final = {"packets_sent": 4, "packets_received": 0}
TRAIN: Final = {"packets": 4, "interval_s": 0.02, "time_out_s": 0.5}
LONG_TRAIN: Final = {"packets": 20, "interval_s": 0.05, "time_out_s": 0.5}
ICMP: Final = {"method": "icmp"}
QUESTION: Final = {"name": PEER_NAME, "time_out_s": 0.4}
OVER_TLS: Final = QUESTION | {"transport": "tls", "server_name": PEER_NAME}
PAGE: Final = {"time_out_s": 0.8, "path": "/small", "allow_private": True}
TLS_PEER = peer(host=PEER_NAME, http_port=HTTPS_PORT, tls=True)


# What is changed of the peer, what comes of it, by when, and what is done to the line.
TRANSFER_FAULTS: Final[dict[str, tuple[dict[str, Any], tuple[str, str], float, Fault | None]]] = {
    "nobody listens": ({"http_port": int(Tcp.NOBODY)}, ("connect", "refused"), 1.0, None),
    "nobody has that address": ({"host": ABSENT}, ("connect", "host_unreachable"), 3.0, None),
    "packets are thrown away": ({"host": DROPPED}, ("connect", "timed_out"), 7.0, None),
    "a router knows no way": ({"host": UNREACHABLE}, ("connect", "host_unreachable"), 3.0, None),
    "a router forbids it": ({"host": PROHIBITED}, ("connect", "host_unreachable"), 3.0, None),
    "no such name": ({"host": "absent.test"}, ("resolve", "name_not_found"), 2.0, None),
    "the peer is silent": ({"http_port": int(Tcp.SILENT)}, ("request", "timed_out"), 7.0, None),
    # A sender hears nothing of the peer before its end: what a silent one took is in buffers, and then it stalls.
    "the peer reads nothing": ({"http_port": int(Tcp.SILENT)}, ("transfer", "stalled"), 6.0, None),
    "the peer stalls": ({"http_port": int(Tcp.STALLS)}, ("transfer", "stalled"), 6.0, None),
    "the peer resets": ({"http_port": int(Tcp.RESETS)}, ("transfer", "reset"), 4.0, None),
    "the peer ends early": ({"http_port": int(Tcp.ENDS_EARLY)}, ("transfer", "closed"), 4.0, None),
    "the peer closes": ({"http_port": int(Tcp.CLOSES)}, ("request", "closed"), 2.0, None),
    "the peer resets at once": ({"http_port": int(Tcp.RESETS_AT_ONCE)}, ("request", "reset"), 2.0, None),
    "a captive portal redirects": ({"http_port": int(Tcp.REDIRECTS)}, ("request", "redirected"), 2.0, None),
    "another protocol": ({"http_port": int(Tcp.NO_HTTP)}, ("request", "malformed"), 2.0, None),
    "the peer is busy": ({"http_port": int(Tcp.BUSY)}, ("request", "peer_busy"), 2.0, None),
    "no such path": ({"http_port": int(Tcp.NOT_FOUND)}, ("request", "http_status"), 2.0, None),
    "the interface is removed": ({}, ("transfer", "link_lost"), 7.0, removed),
    "the carrier is lost": ({}, ("transfer", "link_lost"), 7.0, cut),
}
DOWNLOAD_FAULTS: Final = [
    name for name in TRANSFER_FAULTS if name not in {"the peer reads nothing", "the carrier is lost"}
]
UPLOAD_FAULTS: Final = (
    "nobody listens",
    "the peer reads nothing",
    "the peer resets",
    "a captive portal redirects",
    "the peer is busy",
    "the carrier is lost",
)


def tls_at(port: Tcp) -> dict[str, Any]:
    """A server that speaks TLS, in its own way."""
    return peer(host=PEER_NAME, http_port=int(port), tls=True)


CLEAN: Final = {
    "capacity-download": Row("clean", "capacity", {"streams_failed": 0}, 8.0, DOWN | SHORT, peer()),
    "capacity-upload": Row("clean", "capacity", {"streams_failed": 0}, 8.0, UP | SHORT, peer()),
    "capacity-tls": Row("clean", "capacity", {"streams_failed": 0}, 8.0, DOWN | SHORT, TLS_PEER),
    "round_trip-stamp": Row("clean", "round_trip", {"packets_received": 4}, 3.0, TRAIN, peer()),
    "round_trip-icmp": Row("clean", "round_trip", {"packets_received": 4}, 3.0, TRAIN | ICMP, peer()),
    "dns": Row("clean", "dns", {"answers": 1, "rcode": "NOERROR"}, 2.0, QUESTION),
    "web": Row("clean", "web", {"status": 200}, 3.0, PAGE, peer()),
    "web-tls": Row("clean", "web", {"status": 200}, 3.0, PAGE | {"path": "/"}, tls_at(Tcp.TLS_GOOD)),
    "dns-tls": Row("clean", "dns", {"rcode": "NOERROR"}, 3.0, OVER_TLS | {"resolver": f"{FAR}:{Tcp.TLS_DNS:d}"}),
    **fault_rows.CLEAN,
}


def transfers(kind: str, way: dict[str, Any], names: Iterable[str]) -> dict[str, Row]:
    """Those faults of a bulk transfer in one direction."""
    rows = {}
    for name in names:
        changed, expected, deadline_s, strike = TRANSFER_FAULTS[name]
        rows[f"{kind}: {name}"] = Row(
            name, "capacity", expected, deadline_s, way | LONG, peer(**changed), strike=strike
        )
    return rows


FAULTS: Final = {
    **transfers("capacity-download", DOWN, DOWNLOAD_FAULTS),
    **transfers("capacity-upload", UP, UPLOAD_FAULTS),
    **{
        f"{kind}: {what}": Row(what, task, expected, deadline_s, parameters, tls_at(port))
        for kind, task, parameters in (("capacity-tls", "capacity", DOWN | LONG), ("web-tls", "web", PAGE))
        for what, port, expected, deadline_s in (
            ("expired", Tcp.TLS_EXPIRED, ("tls", "certificate_invalid"), 3.0),
            ("for another name", Tcp.TLS_WRONG_NAME, ("tls", "certificate_invalid"), 3.0),
            ("self-signed", Tcp.TLS_SELF_SIGNED, ("tls", "certificate_invalid"), 3.0),
            ("no handshake", Tcp.TLS_SILENT, ("tls", "timed_out"), 7.0),
            ("no TLS at all", Tcp.TLS_PLAIN, ("tls", "handshake_failed"), 3.0),
            ("closed in the handshake", Tcp.TLS_CLOSES, ("tls", "closed"), 3.0),
        )
    },
    "capacity-download: the carrier is lost right before the end": Row(
        "late", "capacity", ("transfer", "link_lost"), 2.5, DOWN | {"max_duration_s": 1.0}, peer(), strike=cut
    ),
    "round_trip-stamp: nobody listens": Row(
        "refused", "round_trip", ("receive", "refused"), 2.0, TRAIN, peer(stamp_port=int(Udp.NOBODY))
    ),
    "round_trip-stamp: nobody answers": Row(
        "silent", "round_trip", NONE_BACK, 2.0, TRAIN, peer(stamp_port=int(Udp.SILENT))
    ),
    "round_trip-stamp: rubbish comes back": Row(
        "rubbish", "round_trip", NONE_BACK, 2.0, TRAIN, peer(stamp_port=int(Udp.RUBBISH))
    ),
    "round_trip-stamp: packets are thrown away": Row(
        "dropped", "round_trip", NONE_BACK, 2.0, TRAIN, peer(host=DROPPED)
    ),
    **{
        f"round_trip-{method}: the gateway is gone": Row(
            "gateway", "round_trip", ("receive", "host_unreachable"), 2.0, TRAIN | {"method": method},
            peer(host=GATEWAY_GONE),
        )
        for method in ("stamp", "icmp")
    },
    "round_trip-stamp: a router knows no way": Row(
        "unreachable", "round_trip", ("receive", "host_unreachable"), 2.0, TRAIN, peer(host=UNREACHABLE)
    ),
    "round_trip-stamp: no such name": Row(
        "nxdomain", "round_trip", ("resolve", "name_not_found"), 2.0, TRAIN, peer(host="absent.test")
    ),
    "round_trip-stamp: the interface is removed": Row(
        "removed", "round_trip", ("send", "link_lost"), 4.0, LONG_TRAIN, peer(), strike=removed, after_s=0.4
    ),
    "round_trip-stamp: the interface is switched off": Row(
        "down", "round_trip", ("send", "link_lost"), 4.0, LONG_TRAIN, peer(), strike=switched_off, after_s=0.4
    ),
    "round_trip-stamp: the address is withdrawn": Row(
        "withdrawn", "round_trip", ("receive", "link_lost"), 4.0, LONG_TRAIN, peer(host=DROPPED), strike=unaddressed,
        after_s=0.4,
    ),
    "round_trip-icmp: nobody has that address": Row(
        "absent", "round_trip", ("receive", "host_unreachable"), 3.0, TRAIN | ICMP, peer(host=ABSENT)
    ),
    "round_trip-icmp: packets are thrown away": Row(
        "dropped", "round_trip", NONE_BACK, 2.0, TRAIN | ICMP, peer(host=DROPPED)
    ),
    "round_trip-icmp: a router knows no way": Row(
        "unreachable", "round_trip", ("receive", "host_unreachable"), 2.0, TRAIN | ICMP, peer(host=UNREACHABLE)
    ),
    "round_trip-icmp: the interface is removed": Row(
        "removed", "round_trip", ("send", "link_lost"), 4.0, LONG_TRAIN | ICMP, peer(), strike=removed, after_s=0.4
    ),
    "dns: no such name": Row(
        "nxdomain", "dns", ("resolve", "name_not_found"), 2.0, QUESTION | {"name": "absent.test"}
    ),
    **{
        f"dns: {what}": Row(what, "dns", expected, 2.5, QUESTION, resolver=f"{FAR}:{port:d}")
        for what, port, expected in (
            ("nobody listens", Udp.NOBODY, ("resolve", "refused")),
            ("the resolver is silent", Udp.SILENT, ("resolve", "timed_out")),
            ("the resolver says no such name", Udp.DNS_NO_SUCH_NAME, ("resolve", "name_not_found")),
            ("the resolver fails", Udp.DNS_FAILURE, ("resolve", "server_failure")),
            ("the resolver refuses", Udp.DNS_REFUSED, ("resolve", "query_refused")),
        )
    },
    **{
        f"dns: {what}": Row(what, "dns", ("resolve", "timed_out"), 2.5, QUESTION, resolver=f"{address}:53")
        for what, address in (("packets are thrown away", DROPPED), ("the gateway is gone", GATEWAY_GONE))
    },
    **{
        f"dns-tls: {what}": Row(what, "dns", expected, 2.5, OVER_TLS | {"resolver": f"{address}:{port:d}"})
        for what, address, port, expected in (
            ("nobody listens", FAR, Tcp.NOBODY, ("connect", "refused")),
            ("packets are thrown away", DROPPED, Tcp.TLS_DNS, ("connect", "timed_out")),
            ("accepts and says nothing", FAR, Tcp.TLS_SILENT, ("tls", "timed_out")),
            ("no TLS at all", FAR, Tcp.TLS_PLAIN, ("tls", "handshake_failed")),
            ("the certificate is out of date", FAR, Tcp.TLS_EXPIRED, ("tls", "certificate_invalid")),
            ("says nothing after the handshake", FAR, Tcp.TLS_STALLS, ("resolve", "timed_out")),
        )
    },
    **{
        f"dns: the interface is removed, {tries} tries": Row(
            "removed", "dns", ("resolve", "link_lost"), 4.0, QUESTION | {"tries": tries},
            resolver=f"{FAR}:{Udp.SILENT:d}", strike=removed, after_s=0.2,
        )
        for tries in (1, 2)
    },
    "dns: the address is withdrawn": Row(
        "withdrawn", "dns", ("resolve", "link_lost"), 4.0, QUESTION, resolver=f"{FAR}:{Udp.SILENT:d}",
        strike=unaddressed, after_s=0.2,
    ),
    **{
        f"web: {what}": Row(what, "web", expected, deadline_s, PAGE, peer(**changed))
        for what, changed, expected, deadline_s in (
            ("nobody listens", {"http_port": int(Tcp.NOBODY)}, ("connect", "refused"), 1.0),
            ("nobody has that address", {"host": ABSENT}, ("connect", "host_unreachable"), 3.0),
            ("packets are thrown away", {"host": DROPPED}, ("connect", "timed_out"), 3.0),
            ("the server is silent", {"http_port": int(Tcp.SILENT)}, ("request", "timed_out"), 3.0),
            ("the server stalls", {"http_port": int(Tcp.STALLS)}, ("transfer", "stalled"), 4.0),
            ("the server resets", {"http_port": int(Tcp.RESETS)}, ("transfer", "reset"), 3.0),
            ("the server ends early", {"http_port": int(Tcp.ENDS_EARLY)}, ("transfer", "closed"), 3.0),
            ("a captive portal redirects", {"http_port": int(Tcp.REDIRECTS)}, ("request", "redirected"), 2.0),
            ("another protocol", {"http_port": int(Tcp.NO_HTTP)}, ("request", "malformed"), 2.0),
            ("the server is busy", {"http_port": int(Tcp.BUSY)}, ("request", "http_status"), 2.0),
            ("no such page", {"http_port": int(Tcp.NOT_FOUND)}, ("request", "http_status"), 2.0),
            ("no such name", {"host": "absent.test"}, ("resolve", "name_not_found"), 2.0),
        )
    },
    "web: a captive portal answers itself": Row(
        "login page", "web", ("transfer", "intercepted"), 2.0, PAGE | {"expect_sha256": "0123456789abcdef"},
        peer(http_port=int(Tcp.LOGIN_PAGE)),
    ),
    "web: the interface is removed": Row(
        "removed", "web", ("transfer", "link_lost"), 4.0, PAGE, peer(http_port=int(Tcp.STALLS)), strike=removed,
        after_s=0.5,
    ),
    # The first question has 2 s, and then the resolver cannot be asked again.
    "web: the carrier is lost in the look-up": Row(
        "cut", "web", ("resolve", "link_lost"), 4.0, PAGE | {"time_out_s": 4.0}, peer(host=PEER_NAME),
        f"{FAR}:{Udp.SILENT:d}", cut, 0.5,
    ),
    **fault_rows.FAULTS,
}  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One for all rows: what a row does to the line is repaired before the next."""
    with ExitStack() as stack:
        yield Site(stack, tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def clean_paths(site: Site) -> dict[str, Result]:
    """What each task says when nothing is wrong; measured once, before the first fault."""
    return {name: site.measure(row, strikes=False) for name, row in CLEAN.items()}


def check(result: Result, row: Row) -> None:
    """The one outcome that the row names, and in time."""
    if isinstance(row.expected, tuple):
        assert result.failure is not None, (result.values, result.not_run)
        assert (str(result.failure.operation), str(result.failure.kind)) == row.expected, result.failure
    else:
        assert result.values is not None, (result.failure, result.not_run)
        assert {name: result.values[name] for name in row.expected} == row.expected
    assert result.duration_s is not None
    assert result.duration_s <= row.deadline_s


@pytest.mark.parametrize("name", CLEAN)
def test_the_clean_path(clean_paths: dict[str, Result], name: str) -> None:
    """Without a fault each task gives its values."""
    check(clean_paths[name], CLEAN[name])


def test_what_a_name_costs_is_counted(clean_paths: dict[str, Result]) -> None:
    """A download from an address sends nothing that counts; from a name, the questions for it."""
    assert clean_paths["capacity-download"].bytes_sent == 0
    assert 0 < clean_paths["capacity-tls"].bytes_sent < 1000


@pytest.mark.parametrize("name", FAULTS)
def test_one_fault(site: Site, clean_paths: dict[str, Result], name: str) -> None:
    """The same with one fault: exactly that operation and kind, within its deadline."""
    assert clean_paths[name.partition(":")[0]].values is not None, "the clean path does not work"
    row = FAULTS[name]
    try:
        check(site.measure(row, strikes=True), row)
    finally:
        if row.strike is not None:
            site.repair()
