"""Configured against measured: what each task's figures would be if the instrument were perfect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import msgspec
import pytest

from fleet_controller.lab.compare import _TASKS, compare, why_nothing
from fleet_controller.lab.comparison import Comparison, Word, as_builtins, shown
from fleet_controller.lab.profile import Direction, LinkProfile
from fleet_controller.lab.profiles import find_profile
from fleet_controller.lab.site import Run, Site
from probe.messages import ClockReading, ClockState, NotRun, NotRunReason, Result
from probe.tasks import TASKS

CLOCK = ClockReading(state=ClockState.SYNCHRONISED)
RTT_S = 0.04
PLAIN = LinkProfile(10_000_000, 10_000_000, RTT_S, buffer_s=0.1)
# One byte there or back on PLAIN.
BYTE_S = 8 / 10e6
Expected = dict[str, tuple[Any, str]]


class _Line:
    """A line whose mean rate was half of its profile's."""

    @staticmethod
    def mean_rate_bps(direction: Direction, _from_ns: int, _to_ns: int) -> float:
        return PLAIN.rate_bps(direction) / 2


@dataclass
class _Site:
    """As much of a site as a comparison asks for."""

    profile: LinkProfile
    link: _Line

    @property
    def delay_s(self) -> float:
        return self.profile.delay_s


def run_of(task: str, values: dict[str, Any] | None, **variant: str) -> Run:
    """A run with this result."""
    not_run = None if values is not None else NotRun(reason=NotRunReason.LINK_DOWN)
    result = Result(
        task=task, task_version=1, action="a", schedule="s", start_unix_ns=10**18, clock=CLOCK, variant=variant,
        values=values, not_run=not_run,
    )  # fmt: skip
    return Run(result, cpu_s=0.0, began_ns=0, ended_ns=10**10)


def compared(profile: LinkProfile, run: Run, **parameters: Any) -> Expected:
    """What is compared: (configured, relation) by name."""
    site = cast("Site", _Site(profile, _Line()))
    ones = compare(site, run, parameters)
    return {one.what: (one.configured, one.relation if isinstance(one, Comparison) else "word") for one in ones}


def near(seconds: float) -> Any:
    """Equal but for rounding."""
    return pytest.approx(seconds, rel=1e-9)


ROUND_TRIP = {"packets_sent": 10, "packets_received": 9, "packets_duplicated": 1}


def test_round_trips_have_the_length_of_their_packets() -> None:
    """STAMP by its payload, TCP by a SYN; what is lost of connections is not what is lost of packets."""
    by_stamp = compared(PLAIN, run_of("round_trip", ROUND_TRIP, method="stamp", ip_version="4"))
    assert by_stamp["delay_median"] == (near(RTT_S + 2 * (20 + 8 + 44) * BYTE_S), "is")
    assert (by_stamp["pdv"], by_stamp["loss"]) == ((0.0, "is"), (0.0, "is"))
    long = compared(PLAIN, run_of("round_trip", ROUND_TRIP, method="icmp", ip_version="6"), payload_bytes=1000)
    assert long["delay_median"] == (near(RTT_S + 2 * (40 + 8 + 1000) * BYTE_S), "is")
    by_tcp = compared(PLAIN, run_of("round_trip", ROUND_TRIP, method="tcp", ip_version="4"))
    assert by_tcp["delay_median"] == (near(RTT_S + 2 * (20 + 40) * BYTE_S), "is")
    assert "loss" not in by_tcp
    doubled = msgspec.structs.replace(PLAIN, duplicate_ratio=0.1)
    assert compared(doubled, run_of("round_trip", ROUND_TRIP, method="stamp"))["duplicated"] == (near(0.21), "is")


@pytest.mark.parametrize("method", ["stamp", "icmp", "tcp"])
def test_a_line_without_this_ip_version_brings_nothing_back(method: str) -> None:
    """There is no delay to expect of it, and all is lost."""
    only_v4 = msgspec.structs.replace(PLAIN, ipv6="dropped")
    values = ROUND_TRIP | {"packets_received": 0}
    found = compared(only_v4, run_of("round_trip", values, method=method, ip_version="6"))
    assert found == {"loss": (1.0, "is")}
    assert set(compared(only_v4, run_of("round_trip", ROUND_TRIP, method=method, ip_version="4"))) > {"pdv"}


def test_loaded_delay_is_at_most_a_full_buffer_more() -> None:
    """The packet on the line included; nothing more where a policer has no buffer, more where the rate falls."""
    values = {"load_bps": 4e6, "rpm": 300.0, "goodput": [{"offset_s": 2.0, "goodput_bps": 4e6}] * 5}
    run = run_of("responsiveness", values, direction="download", ip_version="4")
    idle_s = RTT_S + 2 * (20 + 8 + 44) * BYTE_S
    found = compared(PLAIN, run)
    assert found["delay_idle"] == (near(idle_s), "is")
    assert found["delay_loaded"] == (near(idle_s + 0.1 + 1500 * BYTE_S), "at_most")
    assert found["rpm"] == (near(1500), "at_most")
    assert found["load"] == (near(10e6 / 2 * 1448 / 1500), "is")
    policed = msgspec.structs.replace(PLAIN, policer_burst_bytes=100_000)
    assert compared(policed, run)["delay_loaded"] == (near(idle_s), "at_most")
    falling = msgspec.convert(
        msgspec.to_builtins(PLAIN) | {"rate_steps": [{"seconds": 1, "ratio": 1}, {"seconds": 1, "ratio": 0.25}]},
        LinkProfile,
    )
    assert compared(falling, run)["delay_loaded"] == (near(idle_s + (0.1 + 1500 * BYTE_S) * 4), "at_most")


@pytest.mark.parametrize(
    ("steady_s", "lower_bound", "expected_s"), [(1.5, False, 1.5), (0.0, True, 0.4), (0.0, False, 2.0)]
)
def test_a_rate_is_compared_with_the_time_it_is_of(steady_s: float, lower_bound: bool, expected_s: float) -> None:
    """The steady part. A lower bound has none, and is the rate of the last 0.4 s; nor has a rate of packet trains."""
    seen: list[float] = []

    class Noted(_Line):
        @staticmethod
        def mean_rate_bps(direction: Direction, from_ns: int, to_ns: int) -> float:
            seen.append((to_ns - from_ns) / 1e9)
            return float(PLAIN.rate_bps(direction))

    values = {"capacity_bps": 4.8e6, "steady_s": steady_s, "transfer_s": 2.0, "curve": [{"offset_s": 2.0}]}
    values["lower_bound"] = lower_bound
    run = run_of("capacity", values, direction="upload", ip_version="4")
    compare(cast("Site", _Site(PLAIN, Noted())), run, {})
    assert seen == [pytest.approx(expected_s)]


def test_the_steady_part_ends_with_the_last_count() -> None:
    """Up to 100 ms behind the curve's last whole step: that much of another rate would be compared."""
    seen: list[tuple[float, float]] = []

    class Noted(_Line):
        @staticmethod
        def mean_rate_bps(direction: Direction, from_ns: int, to_ns: int) -> float:
            seen.append((from_ns / 1e9, to_ns / 1e9))
            return float(PLAIN.rate_bps(direction))

    curve = [{"offset_s": 0.5 + 0.1 * step} for step in range(1, 20)]  # the transfer began half a second after the run
    values = {"capacity_bps": 4.8e6, "lower_bound": False, "steady_s": 1.0, "transfer_s": 1.96, "curve": curve}
    run = run_of("capacity", values, direction="upload", ip_version="4")
    compare(cast("Site", _Site(PLAIN, Noted())), run, {})
    assert seen == [pytest.approx((1.46 - RTT_S, 2.46 - RTT_S))]


def test_capacity_has_its_delays_when_they_were_asked_for() -> None:
    """One figure without, three with `loaded_delay`."""
    run = run_of("capacity", {"capacity_bps": 4.8e6}, direction="upload", ip_version="4")
    assert set(compared(PLAIN, run)) == {"upload"}
    assert set(compared(PLAIN, run, loaded_delay=True)) == {"upload", "delay_idle", "delay_loaded"}


@pytest.mark.parametrize(
    ("profile", "parameters", "states"),
    [
        ("ftth_150_100", {}, ("works", "works")),
        ("ipv6_broken", {}, ("unreachable", "works")),
        ("v4_only", {}, ("no_address", "works")),
        ("v6_only", {}, ("works", "no_address")),
        ("pmtu_1400", {}, ("works", "works")),
        ("pmtu_blackhole", {}, ("mtu_black_hole", "mtu_black_hole")),
        ("pmtu_blackhole", {"mtu": False}, ("works", "works")),
    ],
)
def test_the_state_of_ipv6_follows_from_the_line(
    profile: str, parameters: dict[str, Any], states: tuple[str, str]
) -> None:
    """And what is not there has no delay and no path MTU."""
    found = compared(find_profile(profile), run_of("ipv6", {"state": "works", "state_v4": "works"}), **parameters)
    assert (found["state_v6"], found["state_v4"]) == ((states[0], "word"), (states[1], "word"))
    for suffix, state in zip(("_v6", "_v4"), states, strict=True):
        there = state in {"works", "mtu_black_hole"}
        assert (f"delay{suffix}" in found) == there
        assert (f"path_mtu{suffix}" in found) == (there and parameters.get("mtu", True))
        if f"path_mtu{suffix}" in found:
            assert found[f"path_mtu{suffix}"] == (find_profile(profile).path_mtu_bytes, "is")
            assert found[f"black_hole{suffix}"] == ("yes" if state == "mtu_black_hole" else "no", "word")


def test_a_path_has_one_hop_where_packets_come_through() -> None:
    """And is not reached where they vanish."""
    run = run_of("path", {"reached": True, "hop_count": 1, "delay_min_s": RTT_S}, ip_version="4")
    found = compared(PLAIN, run)
    assert (found["reached"], found["hop_count"]) == (("yes", "word"), (1, "is"))
    assert found["delay_min"] == (near(RTT_S + 2 * (20 + 8 + 44) * BYTE_S), "is")
    lost = run_of("path", {"reached": False}, ip_version="6")
    assert compared(find_profile("ipv6_broken"), lost) == {"reached": ("no", "word")}


def test_a_dns_answer_takes_a_round_trip() -> None:
    """Question and answer have the length of the name and of the records; a connection is one more round trip."""
    values = {"answers": 2, "response_time_s": RTT_S, "connect_s": RTT_S}
    by_udp = compared(PLAIN, run_of("dns", values, record_type="A", transport="udp"), name="ab.test")
    question_bytes = 12 + 1 + 2 + 1 + 4 + 1 + 4  # header, two labels with their lengths, the root, type and class
    asked_s = (20 + 8 + question_bytes) * BYTE_S
    assert by_udp == {"response_time": (near(RTT_S + asked_s + asked_s + 2 * 16 * BYTE_S), "is")}
    assert set(compared(PLAIN, run_of("dns", values, record_type="A", transport="tcp"))) == {"response_time", "connect"}
    by_v6 = compared(PLAIN, run_of("dns", values), name="ab.test", resolver="[2001:2:0:ff::1]:53")
    assert by_v6["response_time"][0] == near(by_udp["response_time"][0] + 40 * BYTE_S)


def test_a_page_takes_a_round_trip_for_each_step() -> None:
    """One to connect, one at least for the name and the first byte, all of them together; without a name one less."""
    values = {"resolve_s": 0.05, "connect_s": 0.04, "first_byte_s": 0.05, "total_s": 0.15}
    jittery = msgspec.structs.replace(PLAIN, jitter_s=0.01)
    found = compared(jittery, run_of("web", values, ip_version="4"))
    assert found["resolve"] == found["first_byte"] == (near(0.035), "at_least")
    assert found["connect"] == (near(RTT_S + 2 * 60 * BYTE_S), "is")
    assert found["total"] == (near(3 * 0.035), "at_least")
    assert compared(jittery, run_of("web", values | {"resolve_s": None}))["total"] == (near(2 * 0.035), "at_least")


def test_a_line_that_works_is_up() -> None:
    """All of the watched time; one without this IP version never; where losses come in runs outages are rightful."""
    values = {"window_s": 30.0, "up_s": 30.0, "packets_sent": 30, "packets_answered": 30}
    works, lost = run_of("availability", values, ip_version="4"), run_of("availability", values, ip_version="6")
    assert compared(PLAIN, works) == {"up": (1.0, "is"), "outages": (0, "is"), "loss": (0.0, "is")}
    broken = compared(find_profile("ipv6_broken"), lost)
    assert broken == {"up": (0.0, "is"), "outages": (1, "is"), "loss": (1.0, "is")}
    assert set(compared(find_profile("4g_edge"), works)) == {"loss"}


def test_every_task_is_compared_or_has_nothing_to_compare() -> None:
    """A task that is added to the registry and not here is noticed."""
    assert set(TASKS) - set(_TASKS) == {"host"}


def test_what_the_line_does_not_decide_is_said() -> None:
    """The probe itself, a task that the lab does not know, and a run that measured nothing."""
    for run, words in (
        (run_of("host", {"load_1m": 0.5}), "looks at the probe itself"),
        (run_of("moon", {"distance_m": 1.0}), "does not know what the line does to moon"),
        (run_of("round_trip", None), "nothing was measured"),
    ):
        assert compared(PLAIN, run) == {}
        assert words in why_nothing(run)


@pytest.mark.parametrize(
    ("one", "words", "holds"),
    [
        (Comparison("c", "bps", 100e6, 101e6), ("100.000 Mbit/s", "101.000 Mbit/s", "+1.00 %"), None),
        (Comparison("d", "s", 0.01, 0.011), ("10.000 ms", "11.000 ms", "+1.000 ms"), None),
        (Comparison("d", "s", 0.01, 0.011, spread=0.002), ("10.000 ±2.000 ms", "11.000 ms", "+1.000 ms"), None),
        (Comparison("d", "s", 0.01, None), ("10.000 ms", "none", ""), None),
        (Comparison("d", "s", 0.01, 0.02, "at_least"), ("≥ 10.000 ms", "20.000 ms", "holds"), True),
        (Comparison("d", "s", 0.01, 0.009, "at_least"), ("≥ 10.000 ms", "9.000 ms", "DOES NOT HOLD"), False),
        (Comparison("d", "s", 0.01, 0.011, "at_most"), ("≤ 10.000 ms", "11.000 ms", "DOES NOT HOLD"), False),
        (Comparison("l", "ratio", 0.02, 0.03), ("2.000 %", "3.000 %", "+1.000 points"), None),
        (Comparison("n", "count", 1, 2), ("1", "2", "DOES NOT HOLD"), False),
        (Comparison("b", "bytes", 1400, 1400), ("1400 bytes", "1400 bytes", "holds"), True),
        (Word("w", "works", "works"), ("works", "works", "holds"), True),
        (Word("w", "works", None), ("works", "none", "DOES NOT HOLD"), False),
    ],
)
def test_a_figure_is_shown(one: Comparison | Word, words: tuple[str, str, str], *, holds: bool | None) -> None:
    """In a person's units, with its error or with whether it holds; and so for programs."""
    assert shown(one) == words
    assert as_builtins(one)["holds"] is holds
    assert as_builtins(one)["configured"] == one.configured
