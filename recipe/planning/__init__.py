"""Estimates what a recipe needs before anything is downloaded: memory, time, disk."""
