"""Estimates how much a stage writes, so that it can stop before it starts if the disk has too little space."""

from pathlib import Path
from typing import Any

from recipe.core.hub_cache import HUB
from recipe.core.paths import Paths

REPORT_BYTES = 2_000_000  # pages, charts and tables
# Per byte of rows: token ids and masks take about 0.6 bytes, and validation rows are written once more as text.
PREPARED_PER_BYTE = 2


def output_bytes(stage: str, params: dict[str, Any], paths: Paths) -> int:
    """Return about how many bytes a stage writes.

    Downloads from the Hub and training are not included: these stages know and check the exact size.
    """
    if stage == "fetch":
        return _size(paths.folder / params["data"].source) if params["data"].source != HUB else 0
    if stage == "prepare":
        return PREPARED_PER_BYTE * _size(paths.raw)
    if stage == "register":  # MLflow copies the adapter, the tokenizer and the reports
        inputs = (paths.adapter, paths.base / "tokenizer", paths.analysis, paths.evaluation, paths.training)
        return REPORT_BYTES + 2 * sum(map(_size, inputs))
    return REPORT_BYTES if stage in ("analyze", "evaluate") else 0


def _size(path: Path) -> int:
    """Return the size of a file, or of all files in a folder, or 0 if it does not exist."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())
