"""Configured against measured, by task: what of each task's figures the line decides, and what a run says of them.

What is single here (one connection, one question) lies anywhere within the jitter; medians and percentiles do not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from fleet_controller.lab.compare_loads import compare_capacity, compare_responsiveness
from fleet_controller.lab.comparison import Compared, Comparison, Word
from fleet_controller.lab.profile import LinkProfile
from fleet_controller.lab.seen import IPV4, IPV6, STAMP_BYTES, SYN_BYTES, TCP_BYTES, UDP_BYTES, Seen
from fleet_controller.lab.site import PEER_NAME, Run, Site

# RFC 1035 section 4.1: header, type and class of a question, ends of a name; section 4.1.3: a record with its name
# compressed, of type A and AAAA.
_QUESTION_BYTES: Final = 12 + 4 + 2
_RECORD_BYTES: Final = {"A": 16, "AAAA": 28}
# The peer's address is the far end of the line itself: no router stands between.
_HOPS: Final = 1


def compare(site: Site, run: Run, parameters: Mapping[str, Any] | None = None) -> tuple[Compared, ...]:
    """The figures of one run that the line decides; none for a task of which it decides none, or that failed."""
    compare_task = _TASKS.get(run.result.task)
    if compare_task is None or run.result.values is None:
        return ()
    return tuple(compare_task(Seen(site, run, run.result.values, parameters or {})))


def why_nothing(run: Run) -> str:
    """Why there is nothing to compare, where `compare` gives nothing."""
    if run.result.values is None:
        return "nothing was measured: there is nothing to compare"
    if run.result.task == "host":
        return "`host` looks at the probe itself: the line decides nothing of it, there is nothing to compare"
    return f"the lab does not know what the line does to {run.result.task}: there is nothing to compare"


def _round_trip(seen: Seen) -> list[Compared]:
    """Of a line without this IP version, that nothing comes back."""
    values, method = seen.values, seen.run.result.variant.get("method")
    loss_ratio = 1 - values["packets_received"] / values["packets_sent"]
    if seen.ip_version not in seen.profile.ip_versions:
        return [Comparison("loss", "ratio", 1.0, loss_ratio)]
    payload_bytes = int(seen.parameters.get("payload_bytes", STAMP_BYTES))
    packet_bytes = SYN_BYTES if method == "tcp" else payload_bytes + UDP_BYTES
    delay_s = seen.round_trip_s(packet_bytes, packet_bytes, seen.ip_version)
    compared: list[Compared] = [
        Comparison("delay_median", "s", delay_s, values.get("delay_median_s")),
        Comparison("pdv", "s", seen.profile.expected_pdv_s(), values.get("pdv_s")),
    ]
    if method == "tcp":  # the kernel repeats a lost SYN: what is lost of connections is not what is lost of packets
        return compared
    received = values["packets_received"]
    compared.append(Comparison("loss", "ratio", seen.profile.expected_loss_ratio(), loss_ratio))
    if (ratio := seen.profile.duplicate_ratio) and received:
        more = values.get("packets_duplicated")
        # A packet may be doubled on its way there, on its way back, or both.
        compared.append(
            Comparison("duplicated", "ratio", 2 * ratio + ratio**2, None if more is None else more / received)
        )
    return compared


def _ipv6(seen: Seen) -> list[Compared]:
    compared: list[Compared] = []
    looks_for_mtu = bool(seen.parameters.get("mtu", True))
    stamp_bytes = STAMP_BYTES + UDP_BYTES
    for version, suffix in ((IPV6, "_v6"), (IPV4, "_v4")):
        state = _state(seen.profile, version, looks_for_mtu=looks_for_mtu)
        compared.append(Word(f"state{suffix}", state, seen.values.get("state" if version == IPV6 else "state_v4")))
        if state not in {"works", "mtu_black_hole"}:
            continue
        delay_s = seen.round_trip_s(stamp_bytes, stamp_bytes, version)
        compared.append(Comparison(f"delay{suffix}", "s", delay_s, seen.values.get(f"delay_median{suffix}_s")))
        connect_s = seen.round_trip_s(SYN_BYTES, SYN_BYTES, version)
        compared.append(seen.single(f"connect{suffix}", f"connect{suffix}_s", connect_s))
        if looks_for_mtu:
            compared += _path_mtu(seen, suffix)
    return compared


def _state(profile: LinkProfile, version: int, *, looks_for_mtu: bool) -> str:
    """What IPv6 or IPv4 is on this line, in the task's words."""
    family = profile.ipv6 if version == IPV6 else profile.ipv4
    if family == "works":
        return "works" if profile.carries_full_packets or not looks_for_mtu else "mtu_black_hole"
    return "no_address" if family == "absent" else "unreachable"


def _path_mtu(seen: Seen, suffix: str) -> list[Compared]:
    is_black_hole = seen.values.get(f"mtu_black_hole{suffix}")
    said = None if is_black_hole is None else _yes(is_true=is_black_hole)
    return [
        Comparison(
            f"path_mtu{suffix}", "bytes", seen.profile.path_mtu_bytes, seen.values.get(f"path_mtu{suffix}_bytes")
        ),
        Word(f"black_hole{suffix}", _yes(is_true=not seen.profile.carries_full_packets), said),
    ]


def _yes(*, is_true: bool) -> str:
    return "yes" if is_true else "no"


def _path(seen: Seen) -> list[Compared]:
    packet_bytes = STAMP_BYTES + UDP_BYTES
    works = seen.ip_version in seen.profile.ip_versions
    compared: list[Compared] = [Word("reached", _yes(is_true=works), _yes(is_true=seen.values["reached"]))]
    if works:
        least_s = seen.round_trip_s(packet_bytes, packet_bytes, seen.ip_version)
        compared.append(Comparison("hop_count", "count", _HOPS, seen.values.get("hop_count")))
        compared.append(seen.single("delay_min", "delay_min_s", least_s))
    return compared


def _dns(seen: Seen) -> list[Compared]:
    values, version = seen.values, seen.resolver_version
    name_bytes = len(str(seen.parameters.get("name", PEER_NAME)).rstrip("."))
    record_bytes = _RECORD_BYTES[seen.run.result.variant.get("record_type", "A")]
    over_udp = seen.run.result.variant.get("transport", "udp") == "udp"
    question_bytes = name_bytes + _QUESTION_BYTES + (UDP_BYTES if over_udp else TCP_BYTES + 2)
    answer_bytes = question_bytes + record_bytes * int(values["answers"])
    response_s = seen.round_trip_s(question_bytes, answer_bytes, version)
    compared: list[Compared] = [seen.single("response_time", "response_time_s", response_s)]
    if not over_udp:
        compared.append(seen.single("connect", "connect_s", seen.round_trip_s(SYN_BYTES, SYN_BYTES, version)))
    return compared


def _web(seen: Seen) -> list[Compared]:
    """One round trip to connect; one at least for a name and for a page, whose lengths the line does not decide."""
    least_s = seen.site.delay_s - seen.profile.jitter_s / 2
    compared: list[Compared] = []
    if seen.values.get("resolve_s") is not None:
        compared.append(Comparison("resolve", "s", least_s, seen.values["resolve_s"], "at_least"))
    compared.append(seen.single("connect", "connect_s", seen.round_trip_s(SYN_BYTES, SYN_BYTES, seen.ip_version)))
    compared.append(Comparison("first_byte", "s", least_s, seen.values.get("first_byte_s"), "at_least"))
    compared.append(Comparison("total", "s", least_s * len(compared), seen.values.get("total_s"), "at_least"))
    return compared


def _availability(seen: Seen) -> list[Compared]:
    """A line that works is up all the time, one without this IP version never.

    With losses in runs three packets in a row can be lost, which rightly is an outage: then only the loss is decided.
    """
    values, works = seen.values, seen.ip_version in seen.profile.ip_versions
    watched_s = values["window_s"] - values.get("unknown_s", 0.0)
    sent, answered = values["packets_sent"], values["packets_answered"]
    loss_ratio = seen.profile.expected_loss_ratio() if works else 1.0
    compared: list[Compared] = []
    if not works or seen.profile.loss_burst_packets <= 1:
        up_ratio = values["up_s"] / watched_s if watched_s > 0 else None
        compared.append(Comparison("up", "ratio", 1.0 if works else 0.0, up_ratio))
        compared.append(Comparison("outages", "count", 0 if works else 1, values.get("outage_count", 0)))
    compared.append(Comparison("loss", "ratio", loss_ratio, 1 - answered / sent if sent else None))
    return compared


_TASKS: Final[dict[str, Callable[[Seen], list[Compared]]]] = {
    "round_trip": _round_trip,
    "capacity": compare_capacity,
    "responsiveness": compare_responsiveness,
    "ipv6": _ipv6,
    "path": _path,
    "dns": _dns,
    "web": _web,
    "availability": _availability,
}
