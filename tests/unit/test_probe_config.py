"""The device's configuration: strict, with the place and the remedy of each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from probe import config
from probe.errors import ConfigError

GOOD = """
agent_id = "vn-ha-noi-0001"
state_dir = "/tmp/probe"

[broker]
host = "broker.example"
port = 8883
tls = { ca_file = "/etc/ca.pem", cert_file = "/etc/cert.pem", key_file = "/etc/key.pem" }

[[links]]
name = "fixed0"
interface = "eth0"
source_address = "192.0.2.10"
resolvers = ["192.0.2.1", "192.0.2.2:5353", "[2001:db8::1]:53"]

[[links]]
name = "mobile0"
interface = "wwan0"

[targets]
networks = ["198.51.100.0/24", "2001:db8::/32"]
domains = ["ispeed.example"]
"""


def load(tmp_path: Path, text: str) -> config.ProbeConfig:
    """Write `text` as a configuration and read it."""
    path = tmp_path / "probe.toml"
    path.write_text(text)
    return config.load(path)


def test_a_full_configuration_is_read(tmp_path: Path) -> None:
    """Every section lands in its type, and what is left out has its default."""
    read = load(tmp_path, GOOD)
    assert read.agent_id == "vn-ha-noi-0001"
    assert [link.name for link in read.links] == ["fixed0", "mobile0"]
    assert read.broker.tls is not None
    assert read.spool.max_bytes == 256 * config.MIB
    assert read.targets.domains == ("ispeed.example",)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "port = 8883",
            "prot = 8883",
            "probe.toml: broker: Object contains unknown field `prot` (did you mean `port`?)",
        ),
        ("port = 8883", "port = 0", "probe.toml: broker.port: Expected `int` >= 1"),
        ('"vn-ha-noi-0001"', '"Hà Nội 1"', "probe.toml: agent_id: Expected `str` matching regex"),
        ('name = "mobile0"', 'name = "fixed0"', "links[1].name: two links are called 'fixed0' (rename one)"),
        ('interface = "eth0"', 'interface = ""', "probe.toml: links[0].interface: Expected `str` matching regex"),
        ('"192.0.2.10"', '"192.0.2.10/24"', "links[0].source_address: '192.0.2.10/24' does not appear to be"),
        ('"192.0.2.10"', '"2001:db8::5"', "2001:db8::5 is an IPv6 address (IPv4 belongs here)"),
        ('"192.0.2.2:5353"', '"192.0.2.2:99999"', "links[0].resolvers[1]: 99999 is not a port"),
        ('"198.51.100.0/24"', '"198.51.100.1/24"', "targets.networks[0]: 198.51.100.1/24 has host bits set"),
        ("[broker]", "[broker", "is not TOML"),
        ('state_dir = "/tmp/probe"', 'log_level = "LOUD"', "log_level: unknown level 'LOUD' (one of DEBUG"),
        ('state_dir = "/tmp/probe"', "colour = 1", "unknown field `colour` (remove it"),
    ],
)
def test_each_mistake_is_named_with_its_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    """A mistake gives one line that says where it stands, what is wrong and what to write instead."""
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, GOOD.replace(old, new, 1))
    assert message in str(caught.value)


def test_a_probe_without_a_link_is_refused(tmp_path: Path) -> None:
    """A probe that has no access line has nothing to measure."""
    with pytest.raises(ConfigError, match="links: Expected `array` of length >= 1"):
        load(tmp_path, GOOD[: GOOD.index("[[links]]")].replace("[broker]", "links = []\n[broker]"))


def test_a_missing_file_says_how_to_name_one(tmp_path: Path) -> None:
    """The commonest mistake has its remedy too."""
    with pytest.raises(ConfigError, match=r"there is no such file \(name one with --config\)"):
        config.load(tmp_path / "none.toml")


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    """A worn card may give back anything: no traceback, one line."""
    path = tmp_path / "probe.toml"
    path.write_bytes(b"\xff\xfe\x00agent")
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", ("192.0.2.1", 53)),
        ("192.0.2.1:5353", ("192.0.2.1", 5353)),
        ("2001:db8::1", ("2001:db8::1", 53)),
        ("[2001:db8::1]:5353", ("2001:db8::1", 5353)),
        ("[2001:db8::1]", ("2001:db8::1", 53)),
    ],
)
def test_resolver_addresses_split(text: str, expected: tuple[str, int]) -> None:
    """Both families, with and without a port."""
    assert config.split_host_port(text, 53) == expected
