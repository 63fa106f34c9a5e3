"""Shared by all stages: errors, files, params.yaml, paths and formatting."""
