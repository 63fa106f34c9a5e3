"""Turn rows into packed token sequences."""
