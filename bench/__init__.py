"""Benchmarks that compare the recipe with the alternatives that users would otherwise run (`make bench`)."""
