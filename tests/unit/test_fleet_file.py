"""The fleet file: every mistake is found, with its line; what is right can be looked up."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleet_controller.fleet import load as fleet_module
from fleet_controller.fleet.load import CheckedFleet, FleetError, Mistake, check_fleet, load_fleet
from fleet_controller.fleet.yaml_lines import FILE_BYTES_MAX, parse_lined

BAD_FLEET = Path(__file__).parent / "bad_fleet"
EXAMPLE = Path(fleet_module.__file__).parents[1] / "examples" / "fleet.yaml"


def words(checked: CheckedFleet) -> str:
    """What is said of a file, one line each, as the expectations beside the files have it."""
    marks = {"error": "", "warning": "warning: "}
    return "".join(f"{mistake.line}: {marks[mistake.severity]}{mistake}\n" for mistake in checked.mistakes)


def check_text(folder: Path, text: str | bytes) -> CheckedFleet:
    """Check a fleet file with this text."""
    path = folder / "fleet.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return check_fleet(path)


@pytest.mark.parametrize("path", sorted(BAD_FLEET.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_mistake_is_told_with_its_line(path: Path) -> None:
    """What is said of each bad file is exactly the text beside it: all its mistakes, in the order of lines."""
    assert words(check_fleet(path)) == path.with_suffix(".txt").read_text(encoding="utf-8")


def test_there_are_expectations_for_every_bad_file() -> None:
    """No bad file without its text, no text without its file."""
    assert {path.stem for path in BAD_FLEET.glob("*.yaml")} == {path.stem for path in BAD_FLEET.glob("*.txt")}


def test_the_example_has_nothing_to_say_about() -> None:
    """The packaged example passes without even a warning, and uses every section and task kind it explains."""
    checked = check_fleet(EXAMPLE)
    assert checked.mistakes == ()
    assert checked.fleet is not None
    assert set(checked.fleet.probes) == {"hn-hoan-kiem-01", "dn-hai-chau-01"}
    assert checked.fleet.suppressions
    assert checked.fleet.operators["vnpt"].asns == (45899,)


def test_load_raises_all_errors_and_no_warnings() -> None:
    """The error has every mistake, and the place of each in its text."""
    path = BAD_FLEET / "tasks.yaml"
    with pytest.raises(FleetError) as caught:
        load_fleet(path)
    assert {mistake.severity for mistake in caught.value.mistakes} == {"error"}
    assert len(caught.value.mistakes) == len(str(caught.value).splitlines()) > 5
    assert f"{path}:8: schedules.all.actions[1].task: unknown task" in str(caught.value)


def test_warnings_do_not_stop_a_fleet() -> None:
    """A mobile link without a byte budget is told, and the fleet is loaded."""
    fleet = load_fleet(BAD_FLEET / "warnings.yaml")
    assert fleet.probes["hn-01"].links["mobile"].byte_budget_per_month is None


def test_tags_are_what_the_fleet_knows_of_a_series() -> None:
    """Province always; operator and access of a known link; nothing of an unknown probe."""
    fleet = load_fleet(EXAMPLE)
    assert fleet.tags("hn-hoan-kiem-01", "mobile") == {"province": "ha_noi", "operator": "viettel", "access": "mobile"}
    assert fleet.tags("hn-hoan-kiem-01", None) == {"province": "ha_noi"}
    assert fleet.tags("hn-hoan-kiem-01", "dsl") == {"province": "ha_noi"}
    assert fleet.tags("nobody", "mobile") == {}


def test_the_scope_of_a_peer_can_be_looked_up() -> None:
    """And is absent for a peer that the fleet does not have."""
    fleet = load_fleet(EXAMPLE)
    assert fleet.peer_scope("hn-vnix") == "domestic"
    assert fleet.peer_scope("sg-transit") == "international"
    assert fleet.peer_scope("nowhere") is None


def test_without_provinces_the_fleet_covers_all(tmp_path: Path) -> None:
    """An absent section means the whole country."""
    checked = check_text(tmp_path, "probes: {}\n")
    assert checked.fleet is not None
    assert len(checked.fleet.provinces) == 34


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "probes:\n", "---\n..."])
def test_an_empty_file_is_an_empty_fleet(tmp_path: Path, text: str) -> None:
    """Somebody who begins is not told off."""
    checked = check_text(tmp_path, text)
    assert checked.mistakes == ()
    assert checked.fleet is not None
    assert checked.fleet.probes == {}


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    """As a mistake like any other."""
    checked = check_fleet(tmp_path / "fleet.yaml")
    assert checked.mistakes == (Mistake(1, "", "cannot be read: No such file or directory"),)


def test_a_byte_that_is_no_utf8_is_told_with_its_line(tmp_path: Path) -> None:
    """A file saved in an old Windows encoding is recognised."""
    checked = check_text(tmp_path, "operators:\n  vnpt: {name: B\xf4ng}\n".encode("latin-1"))
    assert checked.mistakes == (Mistake(2, "", "is not UTF-8 text", "save the file as UTF-8"),)


def test_a_control_character_is_told_with_its_line(tmp_path: Path) -> None:
    """YAML allows none, and its parser knows no line for it."""
    (mistake,) = check_text(tmp_path, "operators:\n  vnpt: {name: a\x07b}\n").mistakes
    assert mistake.line == 2
    assert "is not YAML" in mistake.problem


def test_a_file_of_another_size_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    """Nobody's fleet has 16 MiB: this is another file."""
    (mistake,) = check_text(tmp_path, b"#" * (FILE_BYTES_MAX + 1)).mistakes
    assert "more than 16777216" in mistake.problem


def test_an_alias_bomb_is_refused() -> None:
    """Nine lines that stand for a thousand million values are stopped after half a million, with one mistake."""
    levels = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    mistakes: list[Mistake] = []
    assert parse_lined("\n".join(levels), mistakes) is None
    assert [mistake.problem for mistake in mistakes] == ["is nested too deeply, or repeats itself"]


@pytest.mark.parametrize("text", ["[" * 5000, "- " * 5000, "{a: " * 5000])
def test_endless_nesting_is_refused(text: str) -> None:
    """Whatever the parser makes of it, it ends in a mistake."""
    mistakes: list[Mistake] = []
    parse_lined(text, mistakes)
    assert mistakes


def test_words_stay_words() -> None:
    """YAML 1.1 would read `no` as false, 19:30 as 1170 and 1_0 as 10; of these only the number is one here."""
    root = parse_lined("a: no\nb: 19:30\nc: 1_000\nd: 'true'\ne: true\nf: 1e3\ng: ~\nh: 0o17\ni: -5\nj: .5\n", [])
    assert root is not None
    assert root.value == {
        "a": "no", "b": "19:30", "c": 1000, "d": "true", "e": True, "f": 1000.0, "g": None, "h": "0o17", "i": -5,
        "j": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize("number", ["9" * 5000, "-" + "9" * 200, "1e999", "-1e999"])
def test_a_number_without_bounds_is_a_mistake(tmp_path: Path, number: str) -> None:
    """A finger on a key: whatever it is read as, it is no period, and the line is told."""
    text = f"schedules:\n  often:\n    period_s: {number}\n    actions: [{{task: host}}]\n"
    mistakes = check_text(tmp_path, text).mistakes
    assert [mistake.line for mistake in mistakes if mistake.severity == "error"] == [3]
