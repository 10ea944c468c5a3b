"""Parameters as they are typed: one reading and one wording for `once`, `measure` and `lab run`."""

from __future__ import annotations

from typing import Any

import pytest

from probe.messages import Peer
from probe.tasks import TASKS
from probe.tasks.settings import SettingError, check_settings, read_settings

PEER = Peer(name="p", host="192.0.2.1")


def read(task: str, *settings: str, peer: Peer | None = PEER) -> dict[str, Any]:
    """Read and check, as every command line does."""
    parameters = read_settings(TASKS[task], settings, "--set")
    check_settings(TASKS[task], parameters, (peer,), "--set")
    return parameters


def test_a_value_is_json_or_else_a_word() -> None:
    """Numbers, truth values, lists and null by JSON; everything else is text."""
    settings = ("name=vnnic.vn", "tries=2", "dnssec=true", 'expected_addresses=["192.0.2.9"]', "server_name=null")
    assert read("dns", *settings, peer=None) == {
        "name": "vnnic.vn", "tries": 2, "dnssec": True, "expected_addresses": ["192.0.2.9"], "server_name": None,
    }  # fmt: skip


def test_a_value_may_have_an_equals_sign() -> None:
    """The first one ends the key."""
    assert read("web", "url=https://example.vn/?a=b", peer=None) == {"url": "https://example.vn/?a=b"}


@pytest.mark.parametrize(
    ("task", "settings", "said"),
    [
        ("host", ["window_s"], "--set window_s: has no value (write --set window_s=VALUE)"),
        ("host", ["windw_s=1"], "--set windw_s: host has no such parameter (did you mean window_s?)"),
        ("host", ["x=1"], "--set x: host has no such parameter (one of window_s)"),
        ("host", ["=1"], "--set : host has no such parameter (one of window_s)"),
        ("host", ["window_s=1", "window_s=2"], "--set window_s: is given twice (remove one of them)"),
        ("host", ["window_s=soon"], "--set window_s: expected `float`, got `str`"),
        ("host", ["window_s=NaN"], "--set window_s: expected `float`, got `str`"),
        ("host", ["window_s=61"], "--set window_s: expected `float` <= 60.0"),
        ("round_trip", ["method=ping"], "--set method: 'ping' cannot be (one of icmp, stamp, tcp)"),
        ("round_trip", ["ip_version=5"], "--set ip_version: 5 cannot be (one of 4, 6)"),
        ("dns", ["resolver=1"], "--set resolver: expected `str | null`, got `int` (write --set 'resolver=\"1\"')"),
        (
            "capacity",
            ["mode=capped"],
            "--set max_bytes: mode `capped` needs it (say how many bytes, such as --set max_bytes=25000000)",
        ),
        (
            "capacity",
            ["max_bytes=200000"],
            "--set max_bytes: belongs to mode `capped`, and the mode is `full` (remove it, or set the mode)",
        ),
        ("round_trip", ["ip_version=6"], "--peer: 192.0.2.1 is an IPv4 address, and ip_version is 6 (set ip_version"),
        ("web", ["url=ftp://example.vn"], "--set: 'ftp://example.vn' is not http://host[:port]/path or https://…"),
        ("web", ["url=http://example.vn"], "--peer: the page is named twice"),
    ],
)
def test_a_mistake_has_its_place_and_its_remedy(task: str, settings: list[str], said: str) -> None:
    """The option and its key, what is wrong, and what to type."""
    with pytest.raises(SettingError) as caught:
        read(task, *settings, peer=None if task in {"host", "dns"} else PEER)
    assert str(caught.value).startswith(said)


def test_a_page_without_a_name_is_shown_how_to_name_it() -> None:
    """`web` with nothing at all."""
    with pytest.raises(SettingError) as caught:
        read("web", peer=None)
    assert str(caught.value) == (
        "--set url: no page is named: neither a url nor a peer "
        "(give one of them, such as --set url=https://example.vn/)"
    )
