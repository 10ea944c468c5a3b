"""Questions to a resolver over one link: the messages, the transports, who answered."""
