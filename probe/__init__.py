"""The probe: a Measurement Agent (RFC 7594) for one device with one or more access lines.

    schedule ─► measure ─► spool ─► publish ══MQTT 5, QoS 1, TLS══► fleet_controller
        ▲                    ▲                                           │
        │                    └── deletes only on ◄═══ receipt ◄══════════╡
        └── Instruction ◄═══════════ retained ◄══════════════════════════╛

One stage is one module, named with a verb. Stages never import each other; `agent` joins them. What they share lies
below them: `messages` (the contract), `clock`, `errors`, `config`, `links`, the packet engines of `flows`, and the
registry of `tasks`.
"""

__version__ = "0.1.0"
