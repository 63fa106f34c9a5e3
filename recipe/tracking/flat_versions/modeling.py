"""Stands in for the old module `recipe.modeling`. See answering.py."""

from pathlib import Path
from typing import Any

from recipe.tracking.flat_versions.version import FlatVersion


def load_base(manifest: Any, folder: Path, num_tokens: int, quantization: str) -> None:
    """Do nothing, because the version's process loads the base model."""


def load_adapter(base: None, folder: Path, manifest: Any) -> FlatVersion:
    """Start the process of the version that contains the adapter in `folder`, and return the version."""
    version = FlatVersion(folder.parents[1])
    version.start()
    return version
