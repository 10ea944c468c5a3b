"""What stands in for the world: emulated lines, namespaces, and private servers, for the demo and the tests."""
