"""A graph that somebody else trained becomes a deployed graph; its masks are compared with those of the original."""
