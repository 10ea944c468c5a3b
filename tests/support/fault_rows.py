"""Rows of the fault table: `path`, `ipv6`, `availability`, `responsiveness`, and `round_trip` by TCP.

For each of them the clean path, and those faults that mean something to it.
"""

from __future__ import annotations

from typing import Any, Final

from fault_site import (
    ABSENT,
    ABSENT_V6,
    DROPPED,
    DROPPED_V6,
    DUAL_NAME,
    GATEWAY_GONE,
    HTTPS_PORT,
    NO_ROUTE,
    PEER_NAME,
    PROHIBITED,
    UNREACHABLE,
    UNREACHABLE_V6,
    Fault,
    Row,
    cut,
    peer,
    removed,
)
from faulty_servers import Tcp, Udp
from lab_site import FAR

Expected = tuple[str, str] | dict[str, Any]

BY_TCP: Final = {"method": "tcp", "packets": 4, "interval_s": 0.02, "time_out_s": 0.5}
LONG_BY_TCP: Final = {"method": "tcp", "packets": 20, "interval_s": 0.05, "time_out_s": 0.5}
TRACE: Final = {"probes_per_hop": 1, "silent_hops_max": 2, "time_out_s": 0.4}
ONE_PROBE: Final = TRACE | {"hops_max": 1}
LONG_TRACE: Final = {"probes_per_hop": 4, "silent_hops_max": 2, "interval_s": 0.1, "time_out_s": 0.5}
BY_ICMP: Final = {"method": "icmp"}
BOTH: Final = {"packets": 4, "interval_s": 0.04, "time_out_s": 0.25, "mtu": False}
LONG_BOTH: Final = {"packets": 16, "interval_s": 0.05, "time_out_s": 0.5, "mtu": False}
WATCH: Final = {"method": "stamp", "interval_s": 0.5, "time_out_s": 1.0, "losses": 2}
WINDOW_S: Final = 1.6
LOCAL: Final = {"state_at_start": "up", "state_at_end": "down_local"}
LOAD: Final = {"max_duration_s": 2.0, "interval_s": 0.2}
LONG_LOAD: Final = {"max_duration_s": 10.0}
# Nothing settles within so few intervals.
LOAD_TO_THE_END: Final = {"max_duration_s": 4.0, "interval_s": 1.0}
UP: Final = {"direction": "upload"}
SILENCE: Final = {"reached": False, "hops_answered": 0, "ended_by": "silence"}
EXPIRED: Final = {"host": PEER_NAME, "http_port": int(Tcp.TLS_EXPIRED), "tls": True}
TLS_PEER = peer(host=PEER_NAME, http_port=HTTPS_PORT, tls=True)


def watch(
    name: str, expected: Expected, parameters: dict[str, Any] = WATCH, strike: Fault | None = None, **changed: Any
) -> Row:
    """One window; what strikes does so when three packets have been answered. No row learns from the one before."""
    after_s = None if strike is None else 1.3
    to = peer(name=f"watched-{name}", **changed)
    return Row(name, "availability", expected, WINDOW_S + 4.0, parameters, to, None, strike, after_s, WINDOW_S)


def load(name: str, expected: Expected, deadline_s: float, parameters: dict[str, Any], **changed: Any) -> Row:
    """One loaded direction. The idle line is looked at first, for two seconds at most."""
    return Row(name, "responsiveness", expected, deadline_s, parameters, peer(**changed))


def trace(name: str, expected: Expected, parameters: dict[str, Any] = TRACE, **changed: Any) -> Row:
    """One trace."""
    return Row(name, "path", expected, 2.0, parameters, peer(**changed))


def pair(name: str, expected: Expected, hosts: tuple[str, str] | None = None, **row: Any) -> Row:
    """Both versions of IP: a host with both addresses, or two of them."""
    host, host_v6 = (DUAL_NAME, None) if hosts is None else hosts
    parameters = row.pop("parameters", BOTH) | ({} if host_v6 is None else {"host_v6": host_v6})
    return Row(name, "ipv6", expected, row.pop("deadline_s", 3.0), parameters, peer(host=host), **row)


def connects(name: str, expected: Expected, parameters: dict[str, Any] = BY_TCP, **changed: Any) -> Row:
    """One series of connections."""
    return Row(name, "round_trip", expected, 2.0, parameters, peer(**changed))


CLEAN: Final[dict[str, Row]] = {
    "round_trip-tcp": connects("clean", {"packets_received": 4}),
    "path-udp": trace("clean", {"path": FAR, "hop_count": 1, "ended_by": "destination"}),
    "path-icmp": trace("clean", {"path": FAR, "hop_count": 1, "ended_by": "destination"}, TRACE | BY_ICMP),
    "ipv6": pair("clean", {"state": "works", "state_v4": "works", "pairs": 4}),
    "availability": watch("clean", {"state_at_start": "up", "state_at_end": "up"}),
    "responsiveness-download": load("clean", {"probes_failed": 0}, 7.0, LOAD),
    "responsiveness-upload": load("clean", {"probes_failed": 0}, 7.0, LOAD | UP),
    "responsiveness-tls": load("clean", {"probes_failed": 0}, 7.0, LOAD, **TLS_PEER),
}

ROUND_TRIP: Final = {
    "nobody listens": connects("refused", ("connect", "refused"), http_port=int(Tcp.NOBODY)),
    "nobody has that address": connects("absent", ("connect", "host_unreachable"), host=ABSENT),
    "the gateway is gone": connects("gateway", ("connect", "host_unreachable"), host=GATEWAY_GONE),
    "no route leads there": connects("no route", ("connect", "network_unreachable"), host=NO_ROUTE),
    "packets are thrown away": connects("dropped", {"packets_sent": 4, "packets_received": 0}, host=DROPPED),
    "a router knows no way": connects("unreachable", ("connect", "host_unreachable"), host=UNREACHABLE),
    "a router forbids it": connects("prohibited", ("connect", "host_unreachable"), host=PROHIBITED),
    "no such name": connects("nxdomain", ("resolve", "name_not_found"), host="absent.test"),
    "the interface is removed": Row(
        "removed", "round_trip", ("connect", "link_lost"), 4.0, LONG_BY_TCP, peer(), strike=removed, after_s=0.4
    ),
}
PATH: Final = {
    "path-udp: nobody listens": trace("refused", {"reached": True, "hop_count": 1}, stamp_port=int(Udp.NOBODY)),
    "path-udp: nobody answers": trace("silent", SILENCE, stamp_port=int(Udp.SILENT)),
    "path-udp: rubbish comes back": trace("rubbish", SILENCE, stamp_port=int(Udp.RUBBISH)),
    "path-udp: packets are thrown away": trace("dropped", SILENCE, host=DROPPED),
    "path-udp: no such name": trace("nxdomain", ("resolve", "name_not_found"), host="absent.test"),
    **{
        f"path-{method}: {name}": trace(name, expected, TRACE | {"method": method}, host=host)
        for method in ("udp", "icmp")
        for name, expected, host in (
            ("nobody has that address", ("receive", "host_unreachable"), ABSENT),
            ("the gateway is gone", ("receive", "host_unreachable"), GATEWAY_GONE),
            ("no route leads there", ("send", "network_unreachable"), NO_ROUTE),
        )
    },
    # One probe: Linux gives such answers to one host once a second, after a few at first.
    "path-udp: a router knows no way": trace(
        "unreachable", {"reached": False, "ended_by": "unreachable"}, ONE_PROBE, host=UNREACHABLE
    ),
    "path-udp: the interface is removed": Row(
        "removed", "path", ("send", "link_lost"), 5.0, LONG_TRACE, peer(stamp_port=int(Udp.SILENT)), None, removed, 0.4
    ),
    "path-icmp: the carrier is lost": Row(
        "cut", "path", ("send", "link_lost"), 5.0, LONG_TRACE | BY_ICMP, peer(host=DROPPED), None, cut, 0.4
    ),
}
IPV6: Final = {
    "nobody has these addresses": pair("absent", ("receive", "host_unreachable"), (ABSENT, ABSENT_V6)),
    "packets are thrown away": pair("dropped", ("receive", "timed_out"), (DROPPED, DROPPED_V6)),
    "a router knows no way": pair("unreachable", ("receive", "host_unreachable"), (UNREACHABLE, UNREACHABLE_V6)),
    "IPv6 alone is thrown away": pair("broken", {"state": "unreachable", "state_v4": "works"}, (FAR, DROPPED_V6)),
    "no IPv6 address": pair("no AAAA", {"state": "no_record", "state_v4": "works"}, (PEER_NAME, PEER_NAME)),
    "no such name": pair("nxdomain", ("resolve", "name_not_found"), ("absent.test", "absent.test")),
    **{
        what: pair(what, ("resolve", kind), resolver=f"{FAR}:{port:d}")
        for what, kind, port in (
            ("no resolver listens", "refused", Udp.NOBODY),
            ("the resolver fails", "server_failure", Udp.DNS_FAILURE),
            ("the resolver refuses", "query_refused", Udp.DNS_REFUSED),
        )
    },
    "the interface is removed": pair(
        "removed", ("receive", "link_lost"), parameters=LONG_BOTH, deadline_s=6.0, strike=removed, after_s=0.4
    ),
}
# A line that is down is what is measured here, whatever is down of it.
AVAILABILITY: Final = {
    "nobody listens": watch("refused", {"state_at_end": "down_peer"}, stamp_port=int(Udp.NOBODY)),
    "nobody answers": watch("silent", {"state_at_end": "down_unlocated"}, stamp_port=int(Udp.SILENT)),
    "no such name": watch("nxdomain", ("resolve", "name_not_found"), host="absent.test"),
    "the interface is removed": watch(
        "removed", {"state_at_start": "up", "state_at_end": "down_local"}, strike=removed
    ),
}
RESPONSIVENESS: Final = {
    **{
        f"responsiveness-{way}: {what}": load(what, expected, deadline_s, parameters, **changed)
        for way, what, expected, deadline_s, parameters, changed in (
            ("download", "nobody listens", ("connect", "refused"), 3.0, LOAD, {"http_port": int(Tcp.NOBODY)}),
            ("download", "the gateway is gone", ("connect", "host_unreachable"), 4.0, LOAD, {"host": GATEWAY_GONE}),
            ("download", "no such name", ("resolve", "name_not_found"), 1.0, LOAD, {"host": "absent.test"}),
            ("download", "the peer stalls", ("transfer", "stalled"), 8.0, LONG_LOAD, {"http_port": int(Tcp.STALLS)}),
            ("download", "a portal redirects", ("request", "redirected"), 4.0, LOAD, {"http_port": int(Tcp.REDIRECTS)}),
            ("upload", "the peer is busy", ("request", "peer_busy"), 4.0, LOAD | UP, {"http_port": int(Tcp.BUSY)}),
            (
                "tls",
                "out of date",
                ("tls", "certificate_invalid"),
                4.0,
                LOAD,
                TLS_PEER | {"http_port": int(Tcp.TLS_EXPIRED)},
            ),
        )
    },
    "responsiveness-download: the interface is removed": Row(
        "removed", "responsiveness", ("transfer", "link_lost"), 9.0, LONG_LOAD, peer(), strike=removed
    ),
    # In the middle of a load of 4 s, which is over before a stream stalls.
    "responsiveness-download: the interface is removed shortly before the end": Row(
        "removed late",
        "responsiveness",
        ("transfer", "link_lost"),
        9.0,
        LOAD_TO_THE_END,
        peer(),
        strike=removed,
        after_s=2.5,
    ),
}

FAULTS: Final[dict[str, Row]] = {
    **{f"round_trip-tcp: {name}": row for name, row in ROUND_TRIP.items()},
    **PATH,
    **{f"ipv6: {name}": row for name, row in IPV6.items()},
    **{f"availability: {name}": row for name, row in AVAILABILITY.items()},
    **RESPONSIVENESS,
}
