"""One exchange of STAMP packets, whose bytes the tests spell out by hand from the RFCs' figures."""

from __future__ import annotations

from probe.flows.echo.stamp_packets import ReflectorPacket, SenderPacket, ntp_of

# 2024-01-01 00:00:00.5 UTC.
HALF_PAST_NS = 1_704_067_200_500_000_000
SENDER = SenderPacket(0x01020304, ntp_of(HALF_PAST_NS), 0x8CC8, 0xBEEF)
# Received 0.25 s later, answered after another 0.25 s.
REFLECTOR = ReflectorPacket(
    sequence=7,
    timestamp=ntp_of(HALF_PAST_NS + 500_000_000),
    error_estimate=0x0101,
    session=0xBEEF,
    receive_timestamp=ntp_of(HALF_PAST_NS + 250_000_000),
    sender_sequence=0x01020304,
    sender_timestamp=ntp_of(HALF_PAST_NS),
    sender_error_estimate=0x8CC8,
    sender_ttl=63,
)
