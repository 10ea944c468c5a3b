"""The profiles as data: what stands in the file is taken, and a mistake in it is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleet_controller.errors import ConfigError
from fleet_controller.lab import matrix
from fleet_controller.lab.comparison import Comparison
from fleet_controller.lab.line import line_pair
from fleet_controller.lab.matrix import Case, Row, cases_of, summarise
from fleet_controller.lab.profile import LinkProfile, tcp_payload_bps
from fleet_controller.lab.profiles import find_profile, load_profiles

LINE = "[x]\ndownload_bps = 1000000\nupload_bps = 1000000\ndelay_s = 0.01\n"
ASKED_FOR = {
    *(
        "ftth_150_100",
        "ftth_1000_500",
        "ftth_300_300",
        "ftth_shallow",
        "cable",
        "4g_good",
        "4g_edge",
        "5g",
        "microwave_rain",
    ),
    *("satellite", "leo", "dsl_bloat", "wifi_reorder", "ipv6_broken", "v6_only", "pmtu_blackhole"),
}


def test_the_packages_own_profiles_can_all_be_built() -> None:
    """Every one has a description and makes a line; the ones that people count on are there."""
    profiles = load_profiles()
    assert set(profiles) >= ASKED_FOR
    for profile in profiles.values():
        assert profile.description
        upload, download = line_pair(profile, 1)
        assert (upload.rate_bps, download.rate_bps) == (profile.upload_bps, profile.download_bps)
        assert profile.expected_delay_s() >= profile.delay_s >= profile.expected_pdv_s()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LINE + "jiter_s = 1", "f.toml: x: Object contains unknown field `jiter_s` (did you mean `jitter_s`?)"),
        ("[x]\ndownload_bps = 1000000", "f.toml: x: Object missing required field `upload_bps`"),
        (LINE + "loss_ratio = 2.0", "f.toml: x.loss_ratio: Expected `float` <= 0.5"),
        (LINE + 'queue = "red"', "f.toml: x.queue: Invalid enum value 'red'"),
        (LINE + "rate_steps = [{seconds = 0, ratio = 1}]", "f.toml: x.rate_steps[0].seconds: Expected `float` > 0.0"),
        (LINE + "jitter_s = 0.02", "f.toml: x: a jitter of 0.02 s does not fit into a delay of 0.01 s"),
        (LINE + "reorder_ratio = 0.1", "f.toml: x: reorder_ratio and reorder_gap_s belong together"),
        (LINE + "loss_burst_packets = 3", "f.toml: x: loss_burst_packets without a loss_ratio"),
        (LINE + 'ipv4 = "absent"\nipv6 = "absent"', "f.toml: x: a line needs an IP version"),
        (LINE.replace("[x]", "['../x']"), "f.toml: ../x: is no name of a profile"),
        ("x = 1", "f.toml: x: Expected `object`, got `int`"),
        ("[x", "f.toml: is not TOML"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    """File, profile, key, and what is wrong with it."""
    file = tmp_path / "f.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_profiles(file)
    assert str(caught.value).removeprefix(f"{tmp_path}/").startswith(said)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Its path and the system's word."""
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: .*No such file"):
        load_profiles(tmp_path / "none.toml")


def test_an_own_profile_is_one_entry(tmp_path: Path) -> None:
    """Four lines of TOML are a line."""
    file = tmp_path / "own.toml"
    file.write_text(LINE)
    assert find_profile("x", load_profiles(file)) == LinkProfile(1_000_000, 1_000_000, 0.01)


def test_an_unknown_profile_brings_up_the_one_that_was_meant() -> None:
    """A slip of the finger is not a list of twenty names."""
    with pytest.raises(ConfigError, match="did you mean ftth_150_100"):
        find_profile("ftth_150_10")


def test_what_a_perfect_instrument_would_say() -> None:
    """Payload of full segments by IP version and path MTU, less what is lost; delay with the packets' own length."""
    profile = LinkProfile(150_000_000, 100_000_000, 0.006, loss_ratio=0.01)
    assert tcp_payload_bps(150e6) == pytest.approx(144.8e6)
    assert profile.expected_capacity_bps("download") == pytest.approx(144.8e6 * 0.99)
    assert profile.expected_capacity_bps("upload", 6) == pytest.approx(100e6 * 1428 / 1500 * 0.99)
    assert LinkProfile(10**8, 10**8, 0, path_mtu_bytes=1400).expected_capacity_bps("upload") == 1e8 * 1348 / 1400
    slow = LinkProfile(1_000_000, 500_000, 0.03)
    assert slow.expected_delay_s(44) == pytest.approx(0.03 + 72 * 8 / 1e6 + 72 * 8 / 5e5)
    assert profile.expected_loss_ratio() == pytest.approx(0.0199)


def row(mode: str, *errors: float, case: Case | None = None) -> Row:
    """A row of capacity runs on a 100 Mbit/s line with these errors."""
    case = case or Case("x", "capacity", mode, {"direction": "download"})
    made = Row(case, is_carried=True, outcomes=["measured"] * len(errors), transferred_bytes=[10**7])
    made.comparisons += [(Comparison("download", "bps", 100e6, 100e6 * (1 + error)),) for error in errors]
    return made


def test_the_matrix_is_judged_by_medians_and_by_the_worst_line() -> None:
    """Errors count by their size, a row by the median of its runs; runs of one row must agree."""
    profiles = {"x": LinkProfile(100_000_000, 100_000_000, 0.01)}
    rows = [row("full", 0.01, 0.03, -0.01), row("full", -0.04, -0.04), row("full", 0.0), row("capped", 0.07)]
    summary = summarise(rows, profiles)
    assert summary.full_error_median_ratio == pytest.approx(0.01)
    assert summary.full_error_worst_ratio == pytest.approx(0.04)
    assert summary.capped_error_median_ratio == pytest.approx(0.07)
    assert summary.capped_bytes_ratio_max == pytest.approx(1e7 / (1e9 / 8 * 1448 / 1500))
    assert summary.agreement_worst_ratio == pytest.approx(0.04)
    assert summary.is_good
    assert not summarise([*rows, row("full", 0.06)], profiles).is_good


def test_a_line_that_swallows_packets_must_fail_to_carry_a_transfer() -> None:
    """There a failure is what is expected, and values would be the surprise."""
    profile = find_profile("pmtu_blackhole")
    assert not profile.carries_full_packets
    case = next(case for case in cases_of("b", profile) if case.task == "capacity")
    assert Row(case, is_carried=False, outcomes=["failed: transfer stalled"]).is_as_expected
    assert not Row(case, is_carried=False, outcomes=["measured"]).is_as_expected
    assert not Row(case, is_carried=True, outcomes=["failed: transfer stalled"]).is_as_expected
    assert summarise([Row(case, is_carried=True, outcomes=["broken: x"])], {"b": profile}).unexpected == 1


def test_a_cap_is_a_fifth_of_ten_seconds_and_a_line_without_ipv4_is_asked_by_ipv6() -> None:
    """What a case asks for follows from its line."""
    cases = list(cases_of("v6_only", find_profile("v6_only")))
    assert all(case.parameters["ip_version"] == 6 for case in cases)
    capped = next(case for case in cases if case.mode == "capped")
    ten_seconds = matrix.ten_second_bytes(find_profile("v6_only"), "download")
    assert capped.parameters["max_bytes"] == pytest.approx(ten_seconds / 5)
