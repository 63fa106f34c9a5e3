"""See answering.py."""

from pathlib import Path
from typing import Any

from recipe.tracking.flat_versions.version import FlatVersion


def load_base(manifest: Any, folder: Path, num_tokens: int, quantization: str) -> None:
    """Nothing: the version's own process loads it."""


def load_adapter(base: None, folder: Path, manifest: Any) -> FlatVersion:
    """The version that an adapter's folder belongs to, with its process started."""
    version = FlatVersion(folder.parents[1])
    version.start()
    return version
