"""How many bytes of a stream have arrived, also those that wait for a lost one before them.

The kernel's plain counters (`bytes_received`, `bytes_acked`) stand still while a lost segment is missing and jump when
it comes: over a window of seconds on a slow line with a deep buffer, that is a tenth of what the line carried, put at
the wrong time. A sender knows what waits from the selective acknowledgements (RFC 2018); a receiver has to reckon it.
"""

from __future__ import annotations

from probe.flows.tcp_info import TcpInfo


def waiting_at_receiver_bytes(info: TcpInfo) -> int:
    """What the other side has, beyond what it has acknowledged in order.

    The kernel counts segments; they are taken to be as long as those on their way are on average.
    """
    if not info.sacked_segments or not info.unacked_segments or info.sent_bytes is None:
        return 0
    outstanding_bytes = info.sent_bytes - (info.retransmitted_bytes or 0) - (info.acked_bytes or 0)
    return max(0, outstanding_bytes) * min(info.sacked_segments, info.unacked_segments) // info.unacked_segments


class WaitingHere:
    """Follows one stream as its receiver.

    All segments that came, taken as full ones, less what arrived in order, is what waits plus an overhead: segments
    that came twice or were not full. The overhead is known whenever nothing waits, which is when a period brought
    segments and none of them out of order. Where a driver merges segments without counting them, the difference
    is negative and falls, so next to nothing is ever reckoned to wait.
    """

    def __init__(self) -> None:
        self._segments = self._segment_bytes = 0
        self._out_of_order = self._out_of_order_before = 0
        self._overhead_bytes = 0

    def count(self, info: TcpInfo) -> int:
        """The bytes that wait for a lost one by now; call it with every new `info`."""
        if info.received_segments is None or info.out_of_order_segments is None:
            return 0
        segment_bytes = info.receive_segment_bytes or 0
        surplus_bytes = info.received_segments * segment_bytes - (info.received_bytes or 0)
        came = info.received_segments != self._segments
        all_in_order = came and info.out_of_order_segments == self._out_of_order
        # The kernel's idea of a full segment grows with what it sees; every surplus before is then of another kind.
        if all_in_order or surplus_bytes < self._overhead_bytes or segment_bytes != self._segment_bytes:
            self._overhead_bytes = surplus_bytes
            self._out_of_order_before = info.out_of_order_segments
        self._segments, self._segment_bytes = info.received_segments, segment_bytes
        self._out_of_order = info.out_of_order_segments
        most_bytes = (info.out_of_order_segments - self._out_of_order_before) * segment_bytes
        return min(surplus_bytes - self._overhead_bytes, most_bytes)
