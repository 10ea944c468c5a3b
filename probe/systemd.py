"""What systemd wants to hear (sd_notify(3)): ready, alive, stopping. Without systemd, nothing is said."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> None:
    """Tell the service manager, where there is one. Never blocks and never raises."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    # A leading @ stands for the zero byte of an abstract socket (unix(7)).
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as sock:
            sock.sendto(state.encode(), address)
    except OSError:
        return


def watchdog_period_s() -> float | None:
    """How often to say WATCHDOG=1: half of the time after which systemd restarts us; absent when it does not watch."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    watched = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    if not watched or not microseconds.isdigit() or int(microseconds) == 0:
        return None
    return int(microseconds) / 2e6
