"""The packet-level engines that tasks share."""
