"""What a device agrees to be aimed at."""

from __future__ import annotations

import pytest

from probe.config import Targets
from probe.errors import NotRunError
from probe.measure.targets import TargetGuard
from probe.messages import NotRunReason

GUARD = TargetGuard(Targets(networks=("192.0.2.0/24", "2001:db8::/32"), domains=("vnnic.vn", ".Example.ORG.")))


@pytest.mark.parametrize(
    "host",
    [
        *("192.0.2.1", "192.0.2.255", "2001:db8::1", "2001:DB8:0::1", "::ffff:192.0.2.7"),
        *("vnnic.vn", "speed.vnnic.vn", "SPEED.VNNIC.VN.", "a.b.example.org"),
    ],
)
def test_what_is_within_is_allowed(host: str) -> None:
    """Addresses within a network and names at or under a domain pass."""
    GUARD.check(host)


@pytest.mark.parametrize(
    "host",
    [
        *("192.0.3.1", "10.0.0.1", "2001:db9::1", "::ffff:10.0.0.1", "::1", ""),
        *("evilvnnic.vn", "vnnic.vn.evil.example", "vn", "org", "localhost"),
        *("3221225985", "0xc0000201", "192.0.2", "192.0.2.1.evil.example", "192.0.2.1/24", "[2001:db8::1]"),
    ],
)
def test_what_is_not_within_is_refused(host: str) -> None:
    """All else is refused, in whatever way it is written, with the host in the reason."""
    with pytest.raises(NotRunError) as caught:
        GUARD.check(host)
    assert caught.value.not_run.reason is NotRunReason.TARGET_REFUSED
    assert host in caught.value.not_run.detail


@pytest.mark.parametrize(
    "host",
    [
        *(r"evil\.vnnic.vn", r"evil.example\.vnnic.vn", r"a\046vnnic.vn", "a.vnnic.vn\\"),
        *(
            " vnnic.vn",
            "vnnic.vn ",
            "vnnic.vn\n",
            "a b.vnnic.vn",
            "a\0.vnnic.vn",
            "vnnic.vn..",
            "a..vnnic.vn",
            ".vnnic.vn",
        ),
        *("user@vnnic.vn", "evil.example/.vnnic.vn", "\uff45vil.vnnic.vn", "." * 9, "a." * 123 + "vnnic.vn"),
    ],
)
def test_what_is_no_plain_name_is_refused(host: str) -> None:
    """Whatever a resolver could read in another way than the guard does is refused, under an allowed domain too."""
    with pytest.raises(NotRunError) as caught:
        GUARD.check(host)
    assert caught.value.not_run.reason is NotRunReason.TARGET_REFUSED
    assert caught.value.not_run.detail.startswith("neither an address nor a host name (letters, digits, - and _")


def test_the_longest_name_is_allowed() -> None:
    """253 characters, with underscores and hyphens."""
    GUARD.check("_" + "a-" * 20 + "." + "a." * 101 + "vnnic.vn.")


def test_empty_targets_allow_nothing() -> None:
    """A device whose owner named no targets measures no peer, and says what to do about it."""
    guard = TargetGuard(Targets())
    assert guard.allows_nothing
    with pytest.raises(NotRunError, match=r"targets is empty in this device's probe\.toml"):
        guard.check("192.0.2.1")
