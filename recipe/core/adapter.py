"""Checks that an adapter is undamaged and that it belongs to a given base model.

check_adapter(Path("models/adapter"), manifest)    # raises DataError if a check fails
"""

from pathlib import Path
from typing import Any

from recipe.core.errors import DataError
from recipe.core.io import read_json_object, reading

CONFIG, WEIGHTS = ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def base_name(manifest: dict[str, Any]) -> str:
    """Return a name of the base model that includes its version.

    The name is id@revision, or id@sha256:<first 16 digits> if the model has no revision.
    """
    return f"{manifest['id']}@{manifest['revision'] or 'sha256:' + manifest['sha256'][:16]}"


def base_reference(manifest: dict[str, Any]) -> dict[str, str | None]:
    """Return the keys of adapter_config.json that name the base model.

    PEFT and transformers load a base model from the Hub by its name and `revision`. A local base model has no name on
    the Hub, so its name contains a part of its sha256.
    """
    if manifest["revision"]:
        return {"base_model_name_or_path": manifest["id"], "revision": manifest["revision"]}
    return {"base_model_name_or_path": base_name(manifest), "revision": None}


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
    named = config["base_model_name_or_path"]
    if config.get("revision"):
        named = f"{named}@{config['revision']}"
    if named != base_name(manifest):  # adapters of an early version have the revision in the name
        raise DataError(
            f"the adapter in {folder} was trained for {named}, but the base model is {base_name(manifest)}. Run `dvc "
            "repro`."
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
