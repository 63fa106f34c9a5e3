"""Reads rows from files, and converts the rows to prompts and completions."""
