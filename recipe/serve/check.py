"""Compares a server's answer with the answers of the adapter and of its base model (see recipe/export/check.py).

problem(check, "the server's answer", exact=True)   # None if it is the adapter's answer
"""

from itertools import takewhile
from typing import Any

Check = dict[str, Any]
MARKER = "export.json"  # says what an export was made from, and how to check a server; only such folders are replaced


def problem(check: Check, found: str, *, exact: bool) -> str | None:
    """Return a sentence if an answer is not the adapter's. Rounded weights may change the answer after some words."""
    found, wanted, base = found.strip(), check["answer"], check["base_answer"]
    near, far = (_common(found, text) for text in (wanted, base))
    if found == wanted or (not exact and near > far and 2 * near >= len(wanted)):
        return None
    if found == base or far > near:
        return f"the server answers {found!r} like the base model, so it ignores the adapter, which answers {wanted!r}."
    return f"the server answers {found!r}, but the trained adapter answers {wanted!r}."


def _common(first: str, second: str) -> int:
    """Return the length of the longest common start."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
