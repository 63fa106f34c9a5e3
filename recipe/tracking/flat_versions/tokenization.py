"""See answering.py."""

from pathlib import Path

from recipe.tracking.flat_versions.version import FlatVersion


def load_tokenizer(folder: Path) -> FlatVersion:
    """The version that a tokenizer's folder belongs to; it is the first that its file loads."""
    return FlatVersion(folder.parents[1])
