"""Torch modules that somebody else wrote: in Python, in files and in folders; opened, tried, kept, exported."""
