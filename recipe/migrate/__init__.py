"""Converts the configuration files of other tools for `recipe migrate`."""
