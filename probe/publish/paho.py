"""What the session needs of paho-mqtt, imported without what paho brings along and never uses here.

`paho.mqtt.client` imports `dns.resolver` where dnspython is installed, for looking up SRV records
(`Client.connect_srv`, which no probe calls): 56 modules and 3 MB that every agent would hold at rest, whether it ever
asks a name server or not. It does without where that import fails, so here it fails.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def not_installed(package: str) -> Iterator[None]:
    """In here a package that nobody has imported yet cannot be imported; afterwards it can, as ever.

    Raises:
        ImportError: in the body, from importing it (the import system's own rule for None in `sys.modules`).
    """
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # documented, and left out of the type
    try:
        yield
    finally:
        del sys.modules[package]


with not_installed("dns"):
    import paho.mqtt.client as mqtt
    from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode
    from paho.mqtt.subscribeoptions import SubscribeOptions

__all__ = [
    "CallbackAPIVersion",
    "MQTTErrorCode",
    "PacketTypes",
    "Properties",
    "ReasonCode",
    "SubscribeOptions",
    "mqtt",
]
