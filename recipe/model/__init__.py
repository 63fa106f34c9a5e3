"""Loads the base model and its adapter, computes attention, LoRA layers and the loss, and generates answers."""
