"""The command line of `fleet-controller`: grammar, `check`, exit codes, what `measure` makes of its arguments."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from fleet_controller import cli
from fleet_controller.commands.measure import build_command, expected_results
from fleet_controller.commands.terminal import complain, say, say_json
from fleet_controller.errors import (
    BrokerError,
    ConfigError,
    ControllerError,
    QuarantineError,
    StoreUnavailableError,
)
from fleet_controller.fleet import load as fleet_module
from fleet_controller.fleet.load import load_fleet

EXAMPLE = Path(fleet_module.__file__).parents[1] / "examples" / "fleet.yaml"
BAD_FLEET = Path(__file__).parent / "bad_fleet"
NOW = 1_800_000_000 * 10**9
COMMANDS = ["demo", "serve", "check", "apply", "status", "measure", "quarantine", "quarantine list",
            "quarantine show", "quarantine replay", "lab", "lab list", "lab run", "lab matrix"]  # fmt: skip


def arguments(*words: str) -> argparse.Namespace:
    """What the grammar makes of these words."""
    return cli.build_parser().parse_args(words)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` ends well and names the command."""
    with pytest.raises(SystemExit) as ended:
        cli.main([*command.split(), "--help"])
    assert ended.value.code == 0
    assert f"usage: fleet-controller {command}" in capsys.readouterr().out


def test_the_help_has_examples_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    """A person finds the next command without a manual; every example is one that the grammar takes."""
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert "exit codes:" in text
    examples = [line.split("  ")[1].split()[1:] for line in text.splitlines() if line.startswith("  fleet-controller")]
    assert len(examples) == 8
    for words in examples:
        assert callable(arguments(*words).run)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["fly"],
        ["status", "--jso"],
        ["demo", "--for", "0"],
        ["demo", "--for", "nan"],
        ["demo", "--for", "soon"],
        ["measure", "p1"],
        ["quarantine"],
        ["quarantine", "show", "x"],
        ["quarantine", "replay"],
        ["quarantine", "replay", "1", "--all"],
        ["quarantine", "replay", "--reason", "not_json", "--all"],
    ],
)
def test_wrong_usage_is_exit_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With the usage on standard error."""
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    assert "usage: fleet-controller" in capsys.readouterr().err


def test_the_demo_takes_its_options() -> None:
    """As other programs and the Makefile call it."""
    args = arguments("demo", "--for", "12.5", "--json", "--keep")
    assert (args.for_s, args.json, args.keep) == (12.5, True, True)
    assert arguments("demo").for_s == 90


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BrokerError("gone"), 3),
        (StoreUnavailableError("gone"), 3),
        (ConfigError("f", "bad"), 2),
        (QuarantineError("disk"), 2),
        (ControllerError("other"), 2),
    ],
)
def test_an_error_has_its_exit_code(
    error: ControllerError, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And one line for a person, without a traceback."""

    def fail(_args: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr("fleet_controller.commands.fleet.status", fail)
    assert cli.main(["status"]) == code
    assert capsys.readouterr().err == f"fleet-controller: {error}\n"


def test_a_missing_configuration_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For every command that needs one."""
    for command in (["serve"], ["check"], ["apply"], ["status"], ["measure", "p1", "host"], ["quarantine", "list"]):
        assert cli.main([*command, "--config", str(tmp_path / "absent.toml")]) == 2
        assert "there is no such file (name one with --config)" in capsys.readouterr().err


def test_check_is_content_with_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 and a count of what it found, so that a wrong file with no mistakes is noticed."""
    assert cli.main(["check", str(EXAMPLE)]) == 0
    assert (
        capsys.readouterr().out
        == f"{EXAMPLE}: no mistakes: 2 probes with 3 links in 2 provinces, 3 peers, 11 schedules\n"
    )


def test_check_prints_every_mistake_as_editors_read_it(capsys: pytest.CaptureFixture[str]) -> None:
    """File, line and words, then the sum; exit code 1."""
    path = BAD_FLEET / "unknown_keys.yaml"
    assert cli.main(["check", str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{path}:1: operator: unknown section (did you mean `operators`?)"
    assert lines[-1] == f"{path}: 6 mistakes"
    assert len(lines) == 7


def test_check_says_json_to_programs(capsys: pytest.CaptureFixture[str]) -> None:
    """The same, with line numbers as numbers."""
    path = BAD_FLEET / "syntax.yaml"
    assert cli.main(["check", str(path), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["ok"], said["mistakes"][0]["line"], said["mistakes"][0]["severity"]) == (False, 3, "error")


def test_warnings_are_no_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    """They are printed and do not change the exit code."""
    path = BAD_FLEET / "warnings.yaml"
    assert cli.main(["check", str(path)]) == 0
    assert f"{path}:12: warning: probes.hn-01.links.mobile: is mobile" in capsys.readouterr().out


def test_check_finds_an_instruction_that_is_too_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What no message could carry to the probe is a mistake of the file."""
    actions = "".join(f"      - {{task: dns, name: a{n}, parameters: {{name: {'x' * 60}.vn}}}}\n" for n in range(3000))
    text = (
        f"operators: {{vnpt: {{name: VNPT}}}}\nschedules:\n  many:\n    period_s: 60\n    actions:\n{actions}"
        "probes:\n  p1: {province: hue, links: {fixed: {operator: vnpt, access: fixed}}}\n"
    )
    path = tmp_path / "fleet.yaml"
    path.write_text(text)
    assert cli.main(["check", str(path)]) == 1
    assert "the instruction of p1 has" in capsys.readouterr().out


def test_a_command_has_what_was_asked_for() -> None:
    """Links, peers, parameters by type, and an expiry."""
    args = arguments(
        *["measure", "hn-hoan-kiem-01", "round_trip", "--link", "mobile", "--peer", "hn-vnix"],
        *["--set", "packets=5", "--set", "method=icmp", "--expires", "60"],
    )
    command = build_command(load_fleet(EXAMPLE), args, NOW)
    assert command.links == ("mobile",)
    assert command.action.peers == ("hn-vnix",)
    assert command.action.parameters == {"packets": 5, "method": "icmp"}
    assert command.expires_unix_ns == NOW + 60 * 10**9
    assert command.command_id != build_command(load_fleet(EXAMPLE), args, NOW).command_id


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["hn-hoan-kiem-01", "round_trip", "--peer", "hn-vnix"], 2),
        (["hn-hoan-kiem-01", "round_trip", "--peer", "hn-vnix", "--peer", "sg-transit", "--link", "fixed"], 2),
        (["hn-hoan-kiem-01", "host"], 1),
        (["hn-hoan-kiem-01", "dns"], 2),
    ],
)
def test_the_number_of_results_is_known(words: list[str], expected: int) -> None:
    """One for each link and peer; a task that needs no link runs once."""
    fleet = load_fleet(EXAMPLE)
    command = build_command(fleet, arguments("measure", *words), NOW)
    assert expected_results(fleet, words[0], command) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hn-01", "host"], "hn-01: there is no such probe"),
        (["hn-hoan-kiem-01", "hosts"], r"hosts: there is no such task \(did you mean `host`\?\)"),
        (["hn-hoan-kiem-01", "host", "--link", "fixd"], r"fixd: there is no such link of .*did you mean `fixed`"),
        (["dn-hai-chau-01", "round_trip", "--peer", "hn"], "hn: there is no such peer in the instruction"),
        (["hn-hoan-kiem-01", "round_trip"], r"the task round_trip needs a peer \(one of hn-vnix, sg-transit\)"),
        (["hn-hoan-kiem-01", "host", "--set", "window_s"], "has no value"),
        (["hn-hoan-kiem-01", "host", "--set", "window=1"], r"host has no such parameter \(did you mean window_s\?\)"),
        (["hn-hoan-kiem-01", "host", "--set", "window_s=x"], "--set window_s: expected `float`, got `str`"),
        (["hn-hoan-kiem-01", "host", "--peer", "hn-vnix"], "--peer: this task asks no peer"),
        (["hn-hoan-kiem-01", "web"], "--set url: no page is named"),
        (
            ["hn-hoan-kiem-01", "web", "--peer", "hn-vnix", "--set", "url=http://a.vn/"],
            "--peer: the page is named twice",
        ),
        (
            ["hn-hoan-kiem-01", "capacity", "--peer", "hn-vnix", "--set", "mode=capped"],
            r"such as --set max_bytes=\d+\)",
        ),
    ],
)
def test_what_the_fleet_does_not_have_is_refused_here(words: list[str], message: str) -> None:
    """Before anything is sent, and with what was probably meant."""
    with pytest.raises(ConfigError, match=message):
        build_command(load_fleet(EXAMPLE), arguments("measure", *words), NOW)


def test_strangers_text_commands_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Escape sequences become visible in results, complaints and JSON, which stays the same JSON; Vietnamese stays."""
    text = "Đắk Lắk\x1b[31m\r\x07\x9b2J\u202e\U000e0001"
    say(text)
    assert capsys.readouterr().out == "Đắk Lắk\\x1b[31m\\x0d\\x07\\x9b2J\\u202e\\U000e0001\n"
    complain(text)
    assert capsys.readouterr().err.removesuffix("\n").isprintable()
    say_json({"text": text})
    out = capsys.readouterr().out
    assert json.loads(out) == {"text": text}
    assert all(line.isprintable() for line in out.splitlines())
    assert "Đắk Lắk" in out
