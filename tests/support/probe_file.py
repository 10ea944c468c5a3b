"""The configuration of a probe with two lines over loopback."""

from __future__ import annotations

from pathlib import Path

_HEAD = """\
agent_id = "{agent_id}"
state_dir = "{state_dir}"
status_period_s = {status_period_s}
log_level = "INFO"
[broker]
host = "127.0.0.1"
port = {broker_port}
[spool]
min_free_disk_bytes = 0
[targets]
networks = ["127.0.0.0/8"]
"""
_LINK = """\
[[links]]
name = "{name}"
interface = "lo"
source_address = "{address}"
resolvers = [{resolvers}]
"""
_LINKS = {"fixed0": "127.0.1.1", "mobile0": "127.0.2.1"}


def probe_toml(
    agent_id: str, state_dir: Path, broker_port: int, *, status_period_s: float = 2, resolver: str | None = None
) -> str:
    """A probe that may aim at loopback alone; without a resolver its links use the host's."""
    head = _HEAD.format(
        agent_id=agent_id, state_dir=state_dir, status_period_s=status_period_s, broker_port=broker_port
    )
    resolvers = "" if resolver is None else f'"{resolver}"'
    links = (_LINK.format(name=name, address=address, resolvers=resolvers) for name, address in _LINKS.items())
    return head + "".join(links)
