"""Stage train: LoRA on the packed sequences."""
