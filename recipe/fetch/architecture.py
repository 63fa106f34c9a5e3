"""Checks that a base model matches its config, and that this recipe can train the model.

    check_architecture(Path("models/llama"), ["config.json", "model.safetensors"], "my/llama")
    # raises DataError if a tensor is missing

The model is loaded on the meta device, so that only the headers of the weight files are read. Weights that are already
quantized are an exception: they are read completely, because bitsandbytes needs their values to load them.
"""

from collections.abc import Iterable
from pathlib import Path

from recipe.core.errors import DataError
from recipe.core.format import first_line
from recipe.core.io import read_json
from recipe.core.listed_files import only_files
from recipe.core.loading import describe_mismatches, mismatches
from recipe.core.quantized import stored_quantization


def check_architecture(folder: Path, files: Iterable[str], name: str) -> None:
    """Check the names and shapes of the weights in a model's folder against the architecture in its config.

    Only `files` are read.

    Raises DataError if a tensor is missing, has a different shape, or is not part of the model. For example, a tensor
    would be left over if the config had fewer layers than the weights.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    stored = stored_quantization(read_json(folder / "config.json"), name)
    device = "meta" if stored == "none" else "cpu"
    level, progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)  # otherwise transformers prints a table of the differences
    logging.disable_progress_bar()
    try:
        with only_files(folder, files) as listed:
            _, info = AutoModelForCausalLM.from_pretrained(
                listed, local_files_only=True, device_map=device, output_loading_info=True,
                ignore_mismatched_sizes=True, use_safetensors=True,
            )  # fmt: skip
    except Exception as error:  # noqa: BLE001 - for an invalid config, the libraries raise errors of many classes
        raise DataError(f"transformers can't load the base model in {folder}: {first_line(error)}") from None
    finally:
        logging.set_verbosity(level)
        if progress:
            logging.enable_progress_bar()
    found = mismatches(info)
    if found:
        raise DataError(
            f"the weights of {name} do not fit {_architecture(folder)} as its config.json describes it: "
            f"{describe_mismatches(found)}. Download the model again, or correct config.json."
        )


def _architecture(folder: Path) -> str:
    config = read_json(folder / "config.json")
    return str((config.get("architectures") or [config.get("model_type", "the model")])[0])
