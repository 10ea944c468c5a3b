"""`fleet-controller demo`: the whole system on one machine, on lines of known rate and delay."""
