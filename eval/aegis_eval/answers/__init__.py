"""Asking models, keeping what they answer, and scoring it against what they answered before."""
