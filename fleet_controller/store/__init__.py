"""Store: the only place that knows InfluxDB."""
