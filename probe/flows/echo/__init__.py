"""Packets that come back: STAMP, ICMP echo, TCP connect, and what their delays and losses say."""
