"""What an agent accepts as its desired state, and what it keeps of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.instruction import InstructionError, InstructionFile, parse, problem_of, suppressing
from probe.messages import Action, Command, Instruction, Peer, Schedule, Suppression, encode

NS_PER_S = 1_000_000_000
DAY_NS = 86400 * NS_PER_S


def instruction(**changes: Any) -> Instruction:
    """A good one, with changes."""
    good = Instruction(
        agent_id="hanoi-1",
        revision="r1",
        issued_unix_ns=1,
        peers=(Peer(name="near", host="192.0.2.1"),),
        schedules=(schedule(),),
    )
    return msgspec.structs.replace(good, **changes)


def schedule(**changes: Any) -> Schedule:
    """A good one, with changes."""
    action = Action(name="a", task="round_trip", peers=("near",))
    return msgspec.structs.replace(Schedule(name="often", period_s=10, actions=(action,)), **changes)


def test_a_good_one_is_taken_as_it_is() -> None:
    """What the contract allows is decoded unchanged, unknown tasks, links and fields included."""
    good = instruction(schedules=(schedule(links=("fixed0",)), schedule(name="b", actions=())))
    assert parse(encode(good), "hanoi-1") == good
    assert parse(encode(good).replace(b"{", b'{"new":1,', 1), "hanoi-1") == good


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"agent_id": "hanoi-2"}, "it is for agent 'hanoi-2', this one is 'hanoi-1'"),
        ({"schema_version": 99}, "schema version 99"),
        ({"schedules": (schedule(period_s=0.5),)}, "schedule often: period_s 0.5 is not 1 to"),
        ({"schedules": (schedule(period_s=1e300),)}, "schedule often: period_s 1e+300"),
        ({"schedules": (schedule(), schedule())}, "schedules: 'often' stands there twice"),
        ({"schedules": (schedule(name="command"),)}, "kept for commands"),
        ({"schedules": (schedule(name="a b"),)}, "schedules: 'a b' is not a name"),
        ({"schedules": tuple(schedule(name=f"s{n}") for n in range(65))}, "schedules: 65, at most 64"),
        ({"schedules": (schedule(links=("x", "x")),)}, "links: 'x' stands there twice"),
        (
            {"schedules": (schedule(actions=(Action(name="a", task="t", peers=("near",) * 257),)),)},
            "more than 256 measurements",
        ),
        ({"peers": tuple(Peer(name=f"p{n}", host="192.0.2.1") for n in range(257))}, "peers: 257, at most 256"),
        ({"peers": (Peer(name="p", host="192.0.2.1", download_path="/x HTTP/1.1\r\n\r\nFLUSHALL"),)}, "is not a path"),
        ({"peers": (Peer(name="p", host="a b"),)}, "peer p: 'a b' is not a host"),
        ({"peers": (Peer(name="p", host="192.0.2.1", http_port=0),)}, "peer p: 0 is not a port"),
        ({"schedules": (schedule(actions=(Action(name="a", task="y" * 70_000),)),)}, "is not a name"),
        ({"suppressions": (Suppression(name="s" * 65),)}, "longer than 64"),
        ({"suppressions": tuple(Suppression(name="s") for _ in range(65))}, "suppressions: more than 64"),
        ({"suppressions": (Suppression(name="s", daily_start_s=1),)}, "belong together"),
        ({"suppressions": (Suppression(name="s", daily_start_s=-1, daily_end_s=9),)}, "0 to 86400"),
    ],
)
def test_a_bad_one_is_refused_with_its_reason(changes: dict[str, Any], problem: str) -> None:
    """Each rule of the contract and each bound is held, and the reason names the place."""
    with pytest.raises(InstructionError, match=r"^[^\n]+$") as caught:
        parse(encode(instruction(**changes)), "hanoi-1")
    assert problem in str(caught.value)


@given(st.binary(max_size=300))
def test_garbage_is_refused(payload: bytes) -> None:
    """Whatever bytes come, the answer is an InstructionError."""
    with pytest.raises(InstructionError):
        parse(payload, "hanoi-1")


@pytest.mark.parametrize("payload", [b"[" * 100_000, b" " * 300_000, b'{"agent_id":"\xff"}'])
def test_hostile_payloads_are_refused(payload: bytes) -> None:
    """Deep nesting, too many bytes and broken text are refused like the rest."""
    with pytest.raises(InstructionError):
        parse(payload, "hanoi-1")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"command_id": "x" * 65}, "its id is longer than 64 characters"),
        ({"action": Action(name="a b", task="dns")}, "action: 'a b' is not a name"),
        ({"action": Action(name="a", task="dns", peers=("p",) * 60_000)}, "peers: 'p' stands there twice"),
        (
            {"action": Action(name="a", task="dns", peers=tuple(f"p{n}" for n in range(200))), "links": ("x", "y")},
            "400",
        ),
        ({"links": tuple(f"l{n}" for n in range(1500))}, "links: 1500, at most"),
    ],
)
def test_a_command_is_held_to_the_same_bounds(changes: dict[str, Any], problem: str) -> None:
    """One message must not be able to fill the spool, the status or the memory of a probe."""
    good = Command(command_id="c-1", action=Action(name="a", task="dns"), expires_unix_ns=1)
    assert problem_of(good) is None
    assert problem in (problem_of(msgspec.structs.replace(good, **changes)) or "")


def test_the_file_is_kept_and_replaced(tmp_path: Path) -> None:
    """What was saved last is loaded; nothing else is left in the folder."""
    file = InstructionFile(tmp_path, "hanoi-1")
    assert file.load() is None
    file.save(encode(instruction()))
    file.save(encode(instruction(revision="r2")))
    loaded = file.load()
    assert loaded is not None
    assert loaded.revision == "r2"
    assert os.listdir(tmp_path) == ["instruction.json"]  # noqa: PTH208 - names are what is compared


@pytest.mark.parametrize("content", [b"", b"{", b'{"agent_id": "other", "revision": "x", "issued_unix_ns": 1}'])
def test_a_damaged_file_is_left_alone(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """A file that cannot be followed counts as none, and is told about."""
    (tmp_path / "instruction.json").write_bytes(content)
    assert InstructionFile(tmp_path, "hanoi-1").load() is None
    assert "was left alone" in caplog.text


def test_half_a_write_changes_nothing(tmp_path: Path) -> None:
    """What a power cut left of a new file does not count."""
    file = InstructionFile(tmp_path, "hanoi-1")
    file.save(encode(instruction()))
    (tmp_path / "instruction.new").write_bytes(b"{half")
    assert file.load() == instruction()
    file.save(encode(instruction(revision="r2")))
    assert file.load() == instruction(revision="r2")


@pytest.mark.parametrize(
    ("suppression", "second", "holds"),
    [
        (Suppression(name="s"), 5, True),
        (Suppression(name="s", schedules=("often",)), 5, True),
        (Suppression(name="s", schedules=("other",)), 5, False),
        (Suppression(name="s", start_unix_ns=5 * NS_PER_S), 5, True),
        (Suppression(name="s", start_unix_ns=6 * NS_PER_S), 5, False),
        (Suppression(name="s", end_unix_ns=5 * NS_PER_S), 5, False),
        (Suppression(name="s", start_unix_ns=1, end_unix_ns=6 * NS_PER_S), 5, True),
        (Suppression(name="s", daily_start_s=3600, daily_end_s=7200), 3600, True),
        (Suppression(name="s", daily_start_s=3600, daily_end_s=7200), 7200, False),
        (Suppression(name="s", daily_start_s=82800, daily_end_s=3600), 3599, True),
        (Suppression(name="s", daily_start_s=82800, daily_end_s=3600), 82800, True),
        (Suppression(name="s", daily_start_s=82800, daily_end_s=3600), 43200, False),
    ],
)
def test_suppressions_hold_in_their_windows(suppression: Suppression, second: int, holds: bool) -> None:
    """A window has its start and not its end, may be open, and may cross midnight."""
    assert (suppressing((suppression,), "often", second * NS_PER_S) is not None) is holds
    daily = suppression.daily_start_s is not None
    assert not daily or (suppressing((suppression,), "often", 20_000 * DAY_NS + second * NS_PER_S) is not None) is holds


def test_a_command_is_suppressed_only_by_name() -> None:
    """Quiet hours for all schedules let a person's command through; one that names `command` does not."""
    assert suppressing((Suppression(name="quiet"),), "command", 5) is None
    assert suppressing((Suppression(name="stop", schedules=("command",)),), "command", 5) is not None
