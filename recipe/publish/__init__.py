"""Publishes a registered version on the Hub."""
