"""A reproducible LoRA fine-tuning recipe: dataset and base model in, registered adapter out."""

__version__ = "0.1.0"
