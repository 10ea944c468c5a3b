"""Both ends of the lab's line: addresses, and a peer at the far one."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

from fleet_controller.lab.namespaces import command_in
from fleet_controller.lab.services import die_with_parent

NEAR, FAR = "198.18.0.2", "198.18.0.1"  # RFC 2544's benchmarking range
_PEER = """
import asyncio, sys
from probe.peer.serve import PeerSettings, serve
from probe.peer.server_tls import ServerTls
tls = ServerTls(*sys.argv[3:]) if sys.argv[3:] else None
settings = PeerSettings(host="", http_port=int(sys.argv[1]), stamp_port=int(sys.argv[2]), tls=tls)
asyncio.run(serve(settings, lambda *ports: print("ready", flush=True)))
"""


@contextlib.contextmanager
def far_peer(where: str, http_port: int = 8080, stamp_port: int = 8862, *pair: str) -> Iterator[None]:
    """Our own peer in a namespace, once it answers; with a certificate and its key over TLS."""
    command = [sys.executable, "-c", _PEER, str(http_port), str(stamp_port), *pair]
    with started(where, command):
        yield


@contextlib.contextmanager
def started(where: str, command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A program in a namespace, once it has said its first line."""
    with subprocess.Popen(
        command_in(where, command),
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - only sets a flag, started from one thread
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        try:
            yield process
        finally:
            process.kill()
