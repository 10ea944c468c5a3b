"""Publish: deliver what the spool keeps, and hear what the controller wants."""
