"""The fleet file: what it says, how it is read, and every mistake in it by line."""
