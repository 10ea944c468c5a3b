"""One HTTP connection over one link, step by step."""
