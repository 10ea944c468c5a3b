"""The fleet controller: Controller and Collector (RFC 7594) of all probes.

    ══MQTT══► ingest ─► validate ─► store ─► receipt ══MQTT══► probes
                            └─► quarantine
    fleet.yaml ─► instruct ══MQTT, retained══► probes

One stage is one module, named with a verb. Stages never import each other; `controller` joins them.
"""

__version__ = "0.1.0"
