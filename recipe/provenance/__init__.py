"""Traces a registered version back to its sources: records them at registration, and checks the record later."""
