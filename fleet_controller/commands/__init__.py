"""What the sub-commands of `fleet-controller` do. `cli` reads the command line and calls them."""
