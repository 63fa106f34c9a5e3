"""Fetch the rows or the base model, and record the sha256 of every file.

\b
    recipe fetch data
    recipe fetch model
"""
