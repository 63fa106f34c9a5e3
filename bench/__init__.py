"""Benchmarks of the recipe against the alternatives that a user would run: `make bench`."""
