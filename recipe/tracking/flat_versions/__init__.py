"""Versions that were registered before the package had folders: see answering.py."""
