"""Checks that an adapter is undamaged and that it belongs to a given base model.

check_adapter(Path("models/adapter"), manifest)    # raises DataError if a check fails
"""

from pathlib import Path
from typing import Any

from recipe.core.errors import DataError
from recipe.core.io import read_json_object, reading

CONFIG, WEIGHTS = ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def base_name(manifest: dict[str, Any]) -> str:
    """Return the base model's name as it appears in adapter_config.json.

    The name is id@revision, or id@sha256:<first 16 digits> if the model has no revision.
    """
    return f"{manifest['id']}@{manifest['revision'] or 'sha256:' + manifest['sha256'][:16]}"


def is_trained(folder: Path) -> bool:
    """Return whether an adapter differs from its initial state, in which every matrix B is 0."""
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, "pt") as weights:  # numpy has no bfloat16
        return any(weights.get_tensor(name).any() for name in weights.keys() if ".lora_B" in name)  # noqa: SIM118


def check_adapter(folder: Path, manifest: dict[str, Any]) -> None:
    """Check that the adapter is undamaged and was trained for the base model that the manifest describes.

    Raises DataError if a check fails, and MachineError if an adapter file is missing.
    """
    from safetensors import SafetensorError, safe_open

    config = read_json_object(folder / CONFIG)
    if config["base_model_name_or_path"] != base_name(manifest):
        raise DataError(
            f"the adapter in {folder} was trained for {config['base_model_name_or_path']}, but the base model is "
            f"{base_name(manifest)}. Run `dvc repro`."
        )
    with reading(folder / WEIGHTS, SafetensorError), safe_open(folder / WEIGHTS, "numpy") as weights:
        if not list(weights.keys()):
            raise ValueError("it contains no weights")
        ranks = {weights.get_slice(name).get_shape()[0] for name in weights.keys() if ".lora_A" in name}  # noqa: SIM118
    if ranks and not _fits(config, ranks):  # with a very large value, PEFT would allocate terabytes
        raise DataError(f"{folder / CONFIG} is damaged (r is {config.get('r')!r}, but the weights have {ranks}).")


def _fits(config: dict[str, Any], ranks: set[int]) -> bool:
    """Return whether the weights can have the rank in the config. The experts of a layer share a matrix A."""
    rank = config.get("r")
    if config.get("target_parameters"):
        return isinstance(rank, int) and rank > 0 and all(found % rank == 0 for found in ranks)
    return rank in list(ranks)
