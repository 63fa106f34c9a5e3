"""Supports versions that were registered before the package had subpackages. See answering.py."""
