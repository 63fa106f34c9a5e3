"""Supports model versions that were registered before the package was split into folders.

Such a version contains a file that MLflow runs. This file imports `recipe.answering` and two other modules by their old
names. If the current package is already imported, these imports find the modules in this folder, because
`recipe/__init__.py` adds the folder to the package's search path. The modules pass the work to a process that runs the
version's code. If the current package is not imported, the version loads its own code.
"""

from typing import Any

from recipe.tracking.flat_versions.version import FlatVersion


def answer_rows(
    model: FlatVersion, tokenizer: Any, meta: Any, rows: list[dict[str, Any]], max_new_tokens: int
) -> list[str]:
    """Use the version's code to generate an answer for each row."""
    return model.worker.answer(rows, max_new_tokens)
