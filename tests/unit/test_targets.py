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


def test_empty_targets_allow_nothing() -> None:
    """A device whose owner named no targets measures no peer, and says what to do about it."""
    guard = TargetGuard(Targets())
    assert guard.allows_nothing
    with pytest.raises(NotRunError, match=r"targets is empty in this device's probe\.toml"):
        guard.check("192.0.2.1")
