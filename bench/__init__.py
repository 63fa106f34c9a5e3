"""Benchmarks that compare the recipe with the tools that users would otherwise run (`make bench`)."""
