"""Rows of text: reading them from files, and turning them into prompts and completions."""
