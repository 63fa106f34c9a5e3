"""Code that all stages share: errors, file access, params.yaml, paths and formatting."""
