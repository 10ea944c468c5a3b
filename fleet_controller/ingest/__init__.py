"""Ingest: messages off the broker, acknowledged by hand and only after they are durable."""
