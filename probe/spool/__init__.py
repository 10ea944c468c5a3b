"""Spool: every result is kept until the controller's receipt says that the database has it."""
