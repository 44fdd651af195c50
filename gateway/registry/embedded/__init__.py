"""Registries that one gateway has for itself: in memory, or in an SQLite file."""
