"""The measurement peer: who answers. A STAMP reflector and an HTTP source and sink, for labs and small fleets."""
