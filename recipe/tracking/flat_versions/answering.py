"""Support for versions registered before the package had subpackages, in a process that has imported this package.

Such a version contains a file that MLflow runs. That file does `from recipe.answering import answer_rows` and imports
two more modules by their old names. `recipe/__init__.py` adds this folder to the package's search path, so the imports
find the modules here, which pass the work to a process that runs the version's code. If this package has not been
imported, such a version loads its own code.
"""

from typing import Any

from recipe.tracking.flat_versions.version import FlatVersion


def answer_rows(
    model: FlatVersion, tokenizer: Any, meta: Any, rows: list[dict[str, Any]], max_new_tokens: int
) -> list[str]:
    """Answer each row with the version's code."""
    return model.worker.answer(rows, max_new_tokens)
