"""Bring in the rows or the base model, and check every sha256.

\b
    recipe fetch data
    recipe fetch model
"""
