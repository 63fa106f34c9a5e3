"""Supports model versions that were registered before the package was split into folders. See answering.py."""
