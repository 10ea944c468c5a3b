"""One page, as a browser would fetch it first."""
