"""Rebuilds a commit of a recipe folder, and compares the outputs with the ones that dvc.lock records."""
