"""Names that tell whose a namespace or folder is, and the sweep of what dead processes left."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from fleet_controller.errors import ServiceError
from fleet_controller.lab import namespaces


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of the test's own, and no namespaces, in place of the host's."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(namespaces, "_NETNS_DIRECTORY", tmp_path / "absent")
    return tmp_path


def test_a_living_process_keeps_what_is_its_own(temporary: Path) -> None:
    """The sweep leaves this process's folder alone."""
    mine = temporary / (namespaces.owner_prefix() + "x")
    mine.mkdir()
    assert namespaces.sweep() == []
    assert mine.exists()


def test_what_a_dead_process_left_is_removed(temporary: Path) -> None:
    """A folder whose process is gone goes, with all in it."""
    child = subprocess.Popen(["sleep", "60"])
    prefix = namespaces.owner_prefix(child.pid)
    folder = temporary / (prefix + "demo")
    (folder / "deep").mkdir(parents=True)
    assert namespaces.sweep() == []
    child.kill()
    child.wait()
    assert namespaces.sweep() == [folder.name]
    assert not folder.exists()


def test_a_later_process_with_the_same_number_is_another_one(temporary: Path) -> None:
    """The start time in the name tells a reused process id."""
    stale = temporary / f"pf-{os.getpid()}-1-demo"
    stale.mkdir()
    assert namespaces.sweep() == [stale.name]


@pytest.mark.parametrize("name", ["pf-abc-1-x", "other", "pf-1", "xpf-999999-1-x"])
def test_what_is_not_ours_is_left_alone(temporary: Path, name: str) -> None:
    """Only names of the exact form are swept."""
    (temporary / name).mkdir()
    assert namespaces.sweep() == []
    assert (temporary / name).exists()


def test_a_link_to_elsewhere_is_not_followed(temporary: Path) -> None:
    """A symbolic link with a fitting name does not make the sweep delete its target."""
    target = temporary / "precious"
    target.mkdir()
    (temporary / f"pf-{os.getpid()}-1-x").symlink_to(target)
    assert namespaces.sweep() == []
    assert target.exists()


def test_without_a_namespace_a_command_runs_as_it_is() -> None:
    """None stands for where we are."""
    assert namespaces.command_in(None, ["true"]) == ["true"]
    with namespaces.entered(None):
        pass


def test_a_refused_ip_command_says_what_and_why() -> None:
    """The error has the command and the words of `ip`."""
    with pytest.raises(ServiceError, match=r"ip link show no-such-device: .*no-such-device"):
        namespaces.run_ip("link", "show", "no-such-device")
