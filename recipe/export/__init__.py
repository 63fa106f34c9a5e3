"""Writes a trained adapter in other forms, and proves that each form is the trained model."""
