"""The kernel's words on several streams, added up."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from probe.flows.bulk.result import TcpFacts, tcp_facts
from probe.flows.tcp_info import TcpInfo

BLANK = TcpInfo()
SENDER = replace(
    BLANK,
    min_rtt_s=0.02,
    retransmitted_bytes=100,
    delivery_rate_bps=1_000_000,
    reorderings=1,
    busy_s=2.0,
    receiver_limited_s=0.5,
    buffer_limited_s=0.1,
)


def test_an_upload_knows_what_held_it_up() -> None:
    """Counts are added, shares are of all the time, the rate is of the streams that still run."""
    other = replace(SENDER, min_rtt_s=0.03, busy_s=3.0, receiver_limited_s=0.0)
    facts = tcp_facts([SENDER, other], sends=True, alive=[other])
    assert facts.delay_min_s == 0.02
    assert (facts.retransmitted_bytes, facts.reorderings, facts.delivery_rate_bps) == (200, 2, 1_000_000)
    assert facts.receiver_limited_ratio == pytest.approx(0.1)
    assert facts.buffer_limited_ratio == pytest.approx(0.04)
    assert facts.out_of_order_segments is None


def test_a_download_knows_what_came_out_of_order() -> None:
    """And nothing of what only the sender sees."""
    infos = [replace(SENDER, out_of_order_segments=3), replace(SENDER, out_of_order_segments=4)]
    assert tcp_facts(infos, sends=False, alive=infos) == TcpFacts(delay_min_s=0.02, out_of_order_segments=7)


def test_what_no_kernel_tells_is_absent() -> None:
    """Not zero."""
    assert tcp_facts([BLANK], sends=True, alive=[]) == TcpFacts()
    assert tcp_facts([], sends=False, alive=[]) == TcpFacts()
    assert tcp_facts([replace(SENDER, busy_s=0.0)], sends=True, alive=[]).receiver_limited_ratio is None
