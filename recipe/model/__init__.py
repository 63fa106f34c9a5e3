"""The base model and its adapter: loading, attention, LoRA, loss and generation."""
