"""Compares two registered versions on the same rows."""
