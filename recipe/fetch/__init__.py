"""Fetch the rows or the base model, and verify every sha256.

\b
    recipe fetch data
    recipe fetch model
"""
