"""Locates local copies of Hub files: downloads in the Hub cache, and converted weights in another folder.

Both folders are under HF_HOME by default, and all recipe folders share them. Neither is an output of a stage.
"""

import os
from pathlib import Path
from typing import Any

HUB = "hub"  # the value of `source` in params.yaml for rows or a model from the Hub


def snapshot_folder(repo_type: str, name: str, revision: str) -> Path:
    """Return the Hub cache folder of a repository at a commit (`revision`).

    `repo_type` is `model` or `dataset`.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / f"{repo_type}s--{name.replace('/', '--')}" / "snapshots" / revision


def converted_folder(name: str, revision: str) -> Path:
    """Return the folder for the converted weights of a model at a commit (`revision`).

    The weights were converted to safetensors on this machine.
    """
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "recipe" / "converted" / name.replace("/", "--") / revision


def base_folder(manifest: dict[str, Any], folder: Path) -> Path:
    """Return the folder that contains the files listed in a base model's manifest.

    A path in the manifest is relative to `folder`, the recipe folder. If the environment variable RECIPE_BASE_MODEL is
    set, the folder that it names is returned instead.
    """
    if os.environ.get("RECIPE_BASE_MODEL"):
        return Path(os.environ["RECIPE_BASE_MODEL"])
    if manifest["path"] is not None:
        return folder / manifest["path"]
    if manifest["converted"]:
        return converted_folder(manifest["id"], manifest["revision"])
    return snapshot_folder("model", manifest["id"], manifest["revision"])
