"""What a busy line does to a round trip."""
