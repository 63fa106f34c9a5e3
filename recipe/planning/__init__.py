"""Estimates the memory, time and disk space that a recipe needs, before any large download."""
