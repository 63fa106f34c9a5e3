"""Benchmarks that compare the recipe with what users would otherwise run (`make bench`)."""
