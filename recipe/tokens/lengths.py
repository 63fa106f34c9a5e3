"""Recommends a max_length for rows with given numbers of tokens.

shortest_limit([30] * 99 + [500])    # 64: no more than 1% of the rows are longer
"""

from collections.abc import Sequence

SHORTEST = 64  # tokens; a shorter limit leaves too little room for a prompt and its answer
# Maximum share of the rows that a recommended limit may cut or drop. Counting tokens instead of rows would give a few
# very long rows too much weight.
MAX_CUT = 0.01


def shortest_limit(lengths: Sequence[int]) -> int:
    """Return the smallest power of two, but at least SHORTEST, that no more than MAX_CUT of the rows exceed."""
    enough = sorted(lengths)[len(lengths) - 1 - int(MAX_CUT * len(lengths))]
    limit = SHORTEST
    while limit < enough:
        limit *= 2
    return limit
