"""An adapter's files, and the base model that they belong to.

check_adapter(Path("models/adapter"), manifest)    # raises DataError if they don't
"""

from pathlib import Path
from typing import Any

from recipe.core.errors import DataError
from recipe.core.io import read_json, reading

CONFIG, WEIGHTS = ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def base_name(manifest: dict[str, Any]) -> str:
    """The base model's name in adapter_config.json: id@revision, or id@sha256:<first 16 digits> without a revision."""
    return f"{manifest['id']}@{manifest['revision'] or 'sha256:' + manifest['sha256'][:16]}"


def check_adapter(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise DataError if the adapter was trained for a different base model from the manifest's, or is damaged."""
    from safetensors import SafetensorError, safe_open

    config = read_json(folder / CONFIG)
    if config["base_model_name_or_path"] != base_name(manifest):
        raise DataError(
            f"the adapter in {folder} was trained for {config['base_model_name_or_path']}, but the base model is "
            f"{base_name(manifest)}. Run `dvc repro`."
        )
    with reading(folder / WEIGHTS, SafetensorError), safe_open(folder / WEIGHTS, "numpy") as weights:
        if not list(weights.keys()):
            raise ValueError("it contains no weights")
