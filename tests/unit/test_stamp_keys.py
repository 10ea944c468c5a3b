from __future__ import annotations

from pathlib import Path

import pytest

from probe.check import check
from probe.config import ProbeConfig, load, read_stamp_key
from probe.errors import ConfigError
from probe.instruction import InstructionError, parse
from probe.messages import Instruction, Peer, encode

KEY = "00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF"
TOML = """
agent_id = "hn-01"
state_dir = "state"

[broker]
host = "mqtt.example.vn"

[[links]]
name = "fixed"
interface = "lo"
"""


def key_file(folder: Path, text: str = KEY, mode: int = 0o600) -> Path:
    """A file with this text and these rights."""
    path = folder / "stamp.key"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_key_is_read(tmp_path: Path) -> None:
    """Hexadecimal digits of either case, with or without a line end."""
    assert read_stamp_key(key_file(tmp_path)) == bytes.fromhex(KEY)
    assert read_stamp_key(key_file(tmp_path, KEY.lower() + "\n")) == bytes.fromhex(KEY)
    assert len(read_stamp_key(key_file(tmp_path, "ab" * 16))) == 16
    assert len(read_stamp_key(key_file(tmp_path, "ab" * 64, 0o400))) == 64


@pytest.mark.parametrize(
    "text", ["", "ab" * 15, "ab" * 65, "ab" * 4000, "xy" * 32, KEY[:-1], "héx", "secret of the fleet, long enough"]
)
def test_what_is_no_key_says_so_and_not_what_it_is(tmp_path: Path, text: str) -> None:
    """Too short, too long, not hexadecimal: the remedy is in the message, the secret is not."""
    with pytest.raises(ConfigError, match=r"32 to 128 hexadecimal digits.*openssl rand -hex 32") as caught:
        read_stamp_key(key_file(tmp_path, text))
    assert not text or text not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o777])
def test_a_key_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    """As ssh does with its keys, and with the remedy."""
    path = key_file(tmp_path, mode=mode)
    with pytest.raises(ConfigError, match=f"chmod 600 {path}"):
        read_stamp_key(path)


def test_a_missing_key_is_told(tmp_path: Path) -> None:
    """Its path and the system's words."""
    with pytest.raises(ConfigError, match=r"none\.key: the STAMP key cannot be read: No such file"):
        read_stamp_key(tmp_path / "none.key")
    with pytest.raises(ConfigError, match="directory"):
        read_stamp_key(tmp_path)


def configured(folder: Path, keys: str) -> ProbeConfig:
    """A probe's configuration with these lines of [stamp_keys]."""
    path = folder / "probe.toml"
    path.write_text(f"{TOML}\n[stamp_keys]\n{keys}")
    return load(path)


def test_keys_stand_in_the_devices_own_file(tmp_path: Path) -> None:
    """By name, relative paths from the file's folder; an absent file keeps no agent from starting."""
    config = configured(tmp_path, 'near = "stamp.key"\nfar = "/etc/fleet-probe/far.key"\n')
    assert config.stamp_keys == {"near": str(tmp_path / "stamp.key"), "far": "/etc/fleet-probe/far.key"}


@pytest.mark.parametrize("line", ['"Not A Name" = "x.key"', "near = 7", 'near = { file = "x" }'])
def test_the_table_is_strict(tmp_path: Path, line: str) -> None:
    """A name is a name, and a file is a path."""
    with pytest.raises(ConfigError, match="stamp_keys"):
        configured(tmp_path, line)


def test_check_looks_at_every_key(tmp_path: Path) -> None:
    """`fleet-probe check` finds the one that cannot be used before a measurement does."""
    key_file(tmp_path)
    config = configured(tmp_path, 'near = "stamp.key"\nfar = "none.key"\n')
    states = {one.what: one.state for one in check(config, online=False)}
    assert (states["stamp_keys.near"], states["stamp_keys.far"]) == ("ok", "problem")


def test_an_instruction_names_a_key_and_has_none() -> None:
    """What is no name, such as a path or a key itself, is refused."""

    def told(stamp_key: str) -> Instruction:
        peer = Peer(name="p", host="192.0.2.1", stamp_key=stamp_key)
        return parse(encode(Instruction(agent_id="a", revision="r", issued_unix_ns=1, peers=(peer,))), "a")

    assert told("near").peers[0].stamp_key == "near"
    assert not told("").peers[0].stamp_key
    for bad in ("../near", "Near Key", KEY):
        with pytest.raises(InstructionError, match="is not the name of a STAMP key"):
            told(bad)
