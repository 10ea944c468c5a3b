"""Bulk transfer over TCP: streams, what they speak with a peer, how they count, and when enough is known."""
