"""Stage prepare: rows become packed token sequences."""
