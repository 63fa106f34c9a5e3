"""Reads rows from files and turns them into prompts and completions."""
