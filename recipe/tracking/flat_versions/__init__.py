"""Support for versions registered before the package had subpackages: see answering.py."""
