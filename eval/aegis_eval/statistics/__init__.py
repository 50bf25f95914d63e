"""Intervals and tests for shares, differences and means."""
