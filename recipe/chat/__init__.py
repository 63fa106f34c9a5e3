"""Chats with a trained adapter and its base model in a terminal."""
