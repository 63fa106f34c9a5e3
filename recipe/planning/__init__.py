"""Estimates the memory, time and disk space that a recipe needs, before anything large is downloaded."""
