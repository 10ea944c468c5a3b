"""The controller's configuration: what it takes, and what it says of the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleet_controller import config as config_module
from fleet_controller.config import load, read_secret
from fleet_controller.errors import ConfigError

MINIMAL = '[broker]\nhost = "mqtt.example.vn"\n[influxdb]\nurl = "http://127.0.0.1:8086"\n'
BAD = [
    pytest.param("", "Object missing required field `broker`", "", id="empty"),
    pytest.param("[broker", "is not TOML", "", id="no toml"),
    pytest.param(MINIMAL + "[quarantin]\n", "unknown field `quarantin`", "did you mean `quarantine`?", id="section"),
    pytest.param(
        MINIMAL.replace("host =", "hots ="), "unknown field `hots`", "did you mean `host`?", id="key in a section"
    ),
    pytest.param("xyzzy = 1\n" + MINIMAL, "unknown field `xyzzy`", "remove it", id="key like no other"),
    pytest.param(MINIMAL + "[quarantine]\nmax_bytes = '1 GB'\n", "Expected `int`, got `str`", "", id="type"),
    pytest.param("shards = [32]\n" + MINIMAL, "Expected `int` <= 31", "", id="shard out of range"),
    pytest.param("shards = []\n" + MINIMAL, "length >= 1", "", id="no shard at all"),
    pytest.param("fleet_file = 5\n" + MINIMAL, "Expected the path of a file, got 5", "", id="path"),
    pytest.param("fleet_file = ''\n" + MINIMAL, "Expected the path of a file, got ''", "", id="empty path"),
    pytest.param(MINIMAL + 'username = "u"\n', "username and password_file come together", "give both", id="half"),
    pytest.param(
        MINIMAL + '[broker.tls]\nca_file = "ca.pem"\ncert_file = "c.pem"\n', "cert_file and key_file", "", id="no key"
    ),
    pytest.param(MINIMAL.replace("http://", ""), "is not a URL", "http://127.0.0.1:8086", id="url"),
    pytest.param("log_level = 'LOUD'\n" + MINIMAL, "unknown level 'LOUD'", "one of DEBUG", id="log level"),
    pytest.param(MINIMAL + 'api = "v3"\n', "Invalid enum value 'v3'", "", id="api"),
]


def write(folder: Path, text: str) -> Path:
    """A configuration file with this text."""
    path = folder / "controller.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_shortest_file_is_enough(tmp_path: Path) -> None:
    """A broker and a database are all that must be said."""
    config = load(write(tmp_path, MINIMAL))
    assert config.broker.client_id == "fleet-controller"
    assert config.influxdb.bucket_name == "fleet"
    assert config.shards is None
    assert config.fleet_file == tmp_path / "fleet.yaml"


def test_relative_paths_start_at_the_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not matter where the program is started, nor whether the file was named by a relative path."""
    folder = tmp_path / "etc"
    folder.mkdir()
    write(
        folder,
        'fleet_file = "a/fleet.yaml"\nstate_dir = "state"\n' + MINIMAL + 'token_file = "token"\n'
        '[broker.tls]\nca_file = "ca.pem"\ncert_file = "/etc/ssl/c.pem"\nkey_file = "../c.key"\n',
    )
    monkeypatch.chdir(tmp_path)
    config = load(Path("etc/controller.toml"))
    assert config.fleet_file == folder / "a" / "fleet.yaml"
    assert config.quarantine_dir == folder / "state" / "quarantine"
    assert config.influxdb.token_file == folder / "token"
    assert config.broker.tls is not None
    assert config.broker.tls.ca_file == folder / "ca.pem"
    assert config.broker.tls.cert_file == Path("/etc/ssl/c.pem")


@pytest.mark.parametrize(("text", "problem", "remedy"), BAD)
def test_a_mistake_is_told_with_place_and_remedy(tmp_path: Path, text: str, problem: str, remedy: str) -> None:
    """Every kind of mistake names the file, the problem and, where it is known, what to write instead."""
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert caught.value.place.startswith(str(path))
    assert problem in caught.value.problem
    assert remedy in caught.value.remedy


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    """The message says which file it was and how to name another."""
    with pytest.raises(ConfigError, match=r"controller.toml: there is no such file \(name one with --config\)"):
        load(tmp_path / "controller.toml")


def test_a_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    """Binary is refused as what cannot be read."""
    path = tmp_path / "controller.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(path)


def test_the_example_is_valid() -> None:
    """The packaged example passes and has a remark on what it sets."""
    path = Path(config_module.__file__).parent / "examples" / "controller.toml"
    assert load(path).broker.tls is not None


def test_a_secret_is_one_line(tmp_path: Path) -> None:
    """The line break at its end is not part of it; an empty or absent file is refused."""
    path = tmp_path / "token"
    path.write_text("s3cret\n")
    assert read_secret(path) == "s3cret"
    path.write_text("\n")
    with pytest.raises(ConfigError, match="empty"):
        read_secret(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_secret(tmp_path / "absent")
