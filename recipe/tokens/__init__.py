"""Loads tokenizers, encodes text, and packs examples into sequences."""
