"""The daemon: what opens everything, listens, and answers."""
