"""See answering.py."""

from pathlib import Path

from recipe.tracking.flat_versions.version import FlatVersion


def load_tokenizer(folder: Path) -> FlatVersion:
    """The version that contains the tokenizer folder. The version's file loads the tokenizer first."""
    return FlatVersion(folder.parents[1])
