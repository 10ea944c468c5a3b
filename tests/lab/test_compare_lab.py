"""`lab run`: every task over an emulated line, each figure that the line decides beside what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fleet_controller.cli import main
from fleet_controller.lab.compare import compare
from fleet_controller.lab.comparison import Comparison, Word
from fleet_controller.lab.site import Site

Lab = Callable[..., tuple[int, str, str]]
# What a busy host may add to or take from a delay here: the figures themselves are judged by the benchmarks.
DELAY_S = 0.02


@pytest.fixture
def lab(capsys: pytest.CaptureFixture[str]) -> Lab:
    """Run one command of the lab in this process: exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["lab", *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def compared_of(told: tuple[int, str, str]) -> dict[str, Any]:
    """What `--json` compared, by name."""
    assert told[0] == 0, told
    (run,) = json.loads(told[1])["runs"]
    return {one["what"]: one for one in run["compared"]}


def check(task: str, compared: dict[str, Any]) -> None:
    """Every word and bound holds, and no delay is far off."""
    for one in compared.values():
        assert one["measured"] is not None, (task, one)
        assert one["holds"] is not False, (task, one)
        assert one.get("error_s") is None or abs(one["error_s"]) < DELAY_S, (task, one)


def test_every_short_task_is_compared() -> None:
    """Over one line: all light tasks but `availability`, which takes a window; what each compares holds."""
    expected = {
        "dns": {"response_time"},
        "ipv6": {f"{what}{one}" for what in ("state", "delay", "connect", "path_mtu", "black_hole")
                 for one in ("_v6", "_v4")},
        "path": {"reached", "hop_count", "delay_min"},
        "round_trip": {"delay_median", "pdv", "loss"},
        "web": {"resolve", "connect", "first_byte", "total"},
    }  # fmt: skip
    parameters: dict[str, dict[str, Any]] = {
        "dns": {"name": "peer.test"},
        "web": {"path": "/small", "allow_private": True},
    }
    with Site("ftth_150_100") as site:
        for task, names in expected.items():
            run = site.measure(task, parameters.get(task, {}), peer=None if task == "dns" else "peer")
            ones = compare(site, run, parameters.get(task, {}))
            assert {one.what for one in ones} == names
            for one in ones:
                assert one.measured is not None, one
                assert one.holds is not False, one
                assert isinstance(one, Word) or one.error_s is None or abs(one.error_s) < DELAY_S, one


def test_ipv6_is_what_the_line_makes_of_it(lab: Lab) -> None:
    """Broken: its state, and nothing of a delay or a path MTU, which IPv4 has."""
    compared = compared_of(lab("run", "ipv6_broken", "ipv6", "--json"))
    assert compared["state_v6"]["configured"] == "unreachable"
    assert {"delay_v4", "path_mtu_v4"} <= set(compared)
    assert "delay_v6" not in compared
    check("ipv6", compared)


def test_a_loaded_line_stays_within_its_buffer(lab: Lab) -> None:
    """`responsiveness`: the rate, idle and loaded delay, and rpm."""
    compared = compared_of(lab("run", "ftth_150_100", "responsiveness", "--json"))
    assert set(compared) == {"load", "delay_idle", "delay_loaded", "rpm"}
    check("responsiveness", compared)


def test_capacity_tells_its_loaded_delay_too() -> None:
    """With `loaded_delay`."""
    with Site("ftth_150_100") as site:
        asked = {"mode": "capped", "max_bytes": 30_000_000, "loaded_delay": True}
        ones = {one.what: one for one in compare(site, site.measure("capacity", asked), asked)}
    assert set(ones) == {"download", "delay_idle", "delay_loaded"}
    assert isinstance(ones["delay_loaded"], Comparison)
    assert ones["delay_loaded"].holds


def test_the_probe_itself_has_nothing_to_compare(lab: Lab) -> None:
    """And it is said, to people and to programs."""
    code, out, _ = lab("run", "cable", "host", "--set", "window_s=0.1")
    assert (code, "there is nothing to compare" in out) == (0, True)
    said = json.loads(lab("run", "cable", "host", "-p", "window_s=0.1", "--json")[1])["runs"][0]
    assert (said["compared"], "the probe itself" in said["why_nothing_compared"]) == ([], True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["host", "--set", "window_s"], "--set window_s: has no value (write --set window_s=VALUE)"),
        (["host", "-p", "windw_s=1"], "--set windw_s: host has no such parameter (did you mean window_s?)"),
        (["capacity", "-p", "mode=capped"], "--set max_bytes: mode `capped` needs it (say how many bytes, such as"),
        (["round_trip", "-p", "packets=many"], "--set packets: expected `int`, got `str`"),
        (["moon"], "moon: there is no such task"),
    ],
)
def test_wrong_use_is_told_before_anything_is_built(lab: Lab, arguments: list[str], said: str) -> None:
    """In the words of every other command line, with exit code 2."""
    code, out, err = lab("run", "cable", *arguments)
    assert (code, out) == (2, "")
    assert said in err


def test_a_file_adds_to_the_built_in_lines(lab: Lab, tmp_path: Path) -> None:
    """A line of one's own stands beside them, one of the same name instead."""
    file = tmp_path / "own.toml"
    line = "download_bps = 50_000_000\nupload_bps = 50_000_000\ndelay_s = 0.123\n"
    file.write_text(f"[own]\n{line}\n[cable]\n{line}")
    listed = json.loads(lab("list", "--file", str(file), "--json")[1])
    built_in = json.loads(lab("list", "--json")[1])
    assert set(listed) == {*built_in, "own"}
    assert listed["cable"]["delay_s"] == listed["own"]["delay_s"] == 0.123
    assert listed["satellite"] == built_in["satellite"]
    delay = compared_of(lab("run", "own", "round_trip", "--file", str(file), "--set", "packets=3", "--json"))
    assert delay["delay_median"]["configured"] == pytest.approx(0.123, abs=1e-4)
