from __future__ import annotations

import pytest

from probe.flows.ipv6.happy_eyeballs import Attempt, Winner, winner_of

NEVER = Attempt(None, None)


@pytest.mark.parametrize(
    ("ipv6", "ipv4", "winner"),
    [
        (Attempt(0.0, 0.01), Attempt(0.0, 0.01), "ipv6"),
        (Attempt(0.0, 0.20), Attempt(0.0, 0.01), "ipv6"),  # slower, but with a head start of 250 ms
        (Attempt(0.0, 0.30), Attempt(0.0, 0.01), "ipv4"),
        (Attempt(0.04, 0.01), Attempt(0.0, 0.01), "ipv6"),  # the A record waits 50 ms for the AAAA
        (Attempt(0.10, 0.01), Attempt(0.0, 0.01), "ipv4"),
        (Attempt(0.10, 0.01), Attempt(0.0, 0.60), "ipv6"),  # first to start is not first to arrive
        (Attempt(0.0, 0.01), Attempt(9.0, 0.01), "ipv6"),
        (Attempt(0.0, None), Attempt(0.0, 0.01), "ipv4"),
        (Attempt(0.0, 9.0), Attempt(0.0, None), "ipv6"),
        (Attempt(0.0, None), Attempt(0.0, None), None),
        (NEVER, Attempt(0.0, 0.01), "ipv4"),
        (Attempt(0.0, 0.01), NEVER, "ipv6"),
        (Attempt(0.0, None), NEVER, None),
        (NEVER, NEVER, None),
    ],
)
def test_who_would_be_connected(ipv6: Attempt, ipv4: Attempt, winner: Winner | None) -> None:
    """RFC 8305: resolution delay 50 ms, connection attempt delay 250 ms, IPv6 first."""
    assert winner_of(ipv6, ipv4) == winner
