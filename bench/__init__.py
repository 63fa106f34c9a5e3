"""Benchmarks that compare the recipe with the alternatives that a user would run: `make bench`."""
