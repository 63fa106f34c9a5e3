"""Turn the rows into packed token sequences."""
