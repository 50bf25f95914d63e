"""Experiments as commands: what is run, in which order, where, and what it costs."""
