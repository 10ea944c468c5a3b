"""Each step that IPv6 needs, beside IPv4."""
