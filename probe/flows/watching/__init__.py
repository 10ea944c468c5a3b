"""Is the line there? Round after round, and where it is cut."""
