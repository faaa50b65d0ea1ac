"""Vectors to a searchable version, and the versions on disk."""
