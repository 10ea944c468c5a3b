"""`availability` over a line that works although no route leads anywhere: the kernel sends on the off chance."""

from __future__ import annotations

import asyncio

from fleet_controller.lab.namespaces import entered, run_ip
from probe.clock import SystemClock
from probe.config import LinkConfig
from probe.links import Link
from probe.messages import Peer
from probe.tasks.availability import AvailabilityParameters, measure
from probe.tasks.base import Context

NEAR, PEER, OPERATOR = "198.18.0.1", "198.18.9.9", "198.18.9.8"
WINDOW_S = 8.0
HEALTHY_S = 3.3


async def test_a_line_that_needs_no_route_is_not_blamed_on_the_host(near: str, far: str) -> None:
    """While all was well it had none either: its outage is the operator's, and its packets count."""
    run_ip("-n", near, "link", "add", "line0", "type", "veth", "peer", "line0", "netns", far)
    for name, address in ((near, NEAR), (far, PEER), (far, OPERATOR)):
        run_ip("-n", name, "addr", "add", f"{address}/32", "dev", "line0")
        run_ip("-n", name, "link", "set", "line0", "up")
    run_ip("-n", far, "route", "add", NEAR, "dev", "line0")
    link, peer = Link(LinkConfig(name="l", interface="line0")), Peer(name="p", host=PEER)
    context = Context(clock=SystemClock(), time_out_s=30, link=link, peer=peer, window_s=WINDOW_S)
    with entered(near):
        watching = asyncio.ensure_future(measure(context, AvailabilityParameters(operator_host=OPERATOR)))
        await asyncio.sleep(HEALTHY_S)
        for address in (PEER, OPERATOR):
            run_ip("-n", far, "addr", "del", f"{address}/32", "dev", "line0")
        values = await watching
    assert (values.state_at_start, values.state_at_end) == ("up", "down_operator")
    assert (values.up_s + values.down_operator_s, values.operator_can_tell) == (values.window_s, True)
    assert values.packets_sent >= values.packets_answered + 3
