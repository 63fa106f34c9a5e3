"""Turns rows into packed token sequences."""
