"""paho-mqtt without dnspython: nobody else loses it."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from probe.publish.paho import not_installed

AFTERWARDS = """
import sys
import probe.publish.session
from probe.publish.paho import mqtt
loaded = [name for name in sys.modules if name.partition(".")[0] == "dns"]
assert not loaded, loaded
assert mqtt.HAVE_DNS is False
import dns.resolver
assert dns.resolver.Resolver(configure=False).nameservers == []
"""
BEFORE = """
import dns.resolver
from probe.publish.paho import mqtt
import dns.message
assert mqtt.HAVE_DNS is True
assert dns.message.make_query("peer.test", "A").question
"""


@pytest.mark.parametrize("program", [AFTERWARDS, BEFORE], ids=["imported afterwards", "imported before"])
def test_dnspython_works_beside_it(program: str) -> None:
    """The session loads no module of dnspython; whoever imports it, before or after, has all of it."""
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert outcome.returncode == 0, outcome.stderr


def test_a_package_is_missing_only_inside() -> None:
    """Inside it cannot be imported, whatever is raised there; outside it can."""
    assert "wave" not in sys.modules
    with pytest.raises(ModuleNotFoundError, match="wave"), not_installed("wave"):
        importlib.import_module("wave")
    assert importlib.import_module("wave").__name__ == "wave"


def test_what_is_loaded_already_stays_so() -> None:
    """A package that somebody uses is not taken away from anybody."""
    with not_installed("json"):
        assert importlib.import_module("json") is sys.modules["json"]
    assert "json" in sys.modules
