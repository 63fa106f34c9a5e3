"""Where files from the Hub are on this machine: in the Hub's cache, and converted weights in our folder next to it.

Both are under HF_HOME and shared by all recipe folders; neither is an output of a stage.
"""

import os
from pathlib import Path
from typing import Any

HUB = "hub"  # the value of `source` in params.yaml for rows or a model on the Hub


def snapshot_folder(repo_type: str, name: str, revision: str) -> Path:
    """The folder in the Hub's cache with one commit of a repository; `repo_type` is `model` or `dataset`."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / f"{repo_type}s--{name.replace('/', '--')}" / "snapshots" / revision


def converted_folder(name: str, revision: str) -> Path:
    """The folder with one commit of a model whose weights were converted to safetensors on this machine."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "recipe" / "converted" / name.replace("/", "--") / revision


def base_folder(manifest: dict[str, Any], folder: Path) -> Path:
    """The folder with the files listed in a base model's manifest, whose path is relative to the recipe's `folder`."""
    if os.environ.get("RECIPE_BASE_MODEL"):
        return Path(os.environ["RECIPE_BASE_MODEL"])
    if manifest["path"] is not None:
        return folder / manifest["path"]
    if manifest["converted"]:
        return converted_folder(manifest["id"], manifest["revision"])
    return snapshot_folder("model", manifest["id"], manifest["revision"])
