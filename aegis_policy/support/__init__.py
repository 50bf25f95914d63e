"""Errors, files, processes and flags: what every other package here uses, and what knows none of them."""
