"""Versions that were registered before the package had folders, in a process that has imported this package.

Their own file, which MLflow runs, does `from recipe.answering import answer_rows` and loads two more modules by their
names of that time. `recipe/__init__.py` adds this folder to where the package's modules are found; the functions hand
the work to a process that runs the version's own code. Without this package such a version loads its own code itself.
"""

from typing import Any

from recipe.tracking.flat_versions.version import FlatVersion


def answer_rows(
    model: FlatVersion, tokenizer: Any, meta: Any, rows: list[dict[str, Any]], max_new_tokens: int
) -> list[str]:
    """One answer a row, by the version's own code."""
    return model.worker.answer(rows, max_new_tokens)
