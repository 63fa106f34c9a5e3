"""Finds the base model that a manifest describes, checks the model's files, loads the model, and adds an adapter.

The train and evaluate stages, `recipe chat` and the registered model use this module. The stages pin the CPU's
instruction set, so that the same inputs produce the same bytes on every x86-64 processor with AVX2 (for bfloat16, see
pin_processor).
"""

import json
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from recipe.core.adapter import ADAPTER_FILES, CONFIG, base_reference, check_adapter
from recipe.core.errors import DataError, MachineError, ParamsError
from recipe.core.format import first_line
from recipe.core.hub_cache import base_folder
from recipe.core.io import read_json, sha256_file, write_json
from recipe.core.listed_files import only_files
from recipe.core.loading import describe_mismatches, mismatches
from recipe.core.quantized import stored_quantization
from recipe.model.packed_attention import choose_attention, packing_is_isolated, register_attention
from recipe.model.processor import Dtype, Quantization, torch_dtype
from recipe.tokens.tokenizer import load_tokenizer


def find_base(manifest: dict[str, Any], folder: Path) -> Path:
    """Find the folder with the base model's files, and check the size and sha256 of each file against the manifest.

    Raises MachineError if a file is missing, and DataError if a file differs.
    """
    from_hub = manifest["path"] is None
    source = base_folder(manifest, folder)
    restore = (
        "Run `recipe fetch model` to restore the file (no outputs will change)" if from_hub else "Restore the file"
    )
    for file in manifest["files"]:
        path = source / file["name"]
        if not path.is_file():
            raise MachineError(
                f"the base model {manifest['id']} is not at {source}: {file['name']} is missing. "
                f"{restore}, or set RECIPE_BASE_MODEL to a folder that contains the file."
            )
        if path.stat().st_size != file["bytes"] or sha256_file(path) != file["sha256"]:
            raise DataError(
                f"{path} does not match the file that was fetched for {manifest['id']} (expected sha256 "
                f"{file['sha256']}). {restore}" + ("." if from_hub else ", or run `dvc repro` to use the new file.")
            )
    return source


def load_base(
    manifest: dict[str, Any], folder: Path, num_tokens: int, quantization: Quantization = "none", *,
    dtype: Dtype = "auto", packed: bool = False,
) -> Any:  # fmt: skip
    """Check the base model's files against a manifest, and load the model in `torch_dtype(dtype)`.

    A local path in the manifest is relative to `folder`. Weights that are already quantized are loaded as they are.
    Files that the manifest does not list are not read.

    Set `packed` for training on packed sequences. The model then uses `by_document` attention if possible.
    Raises ParamsError if the model can't keep the examples of a packed sequence apart.

    If the tokenizer has more tokens (`num_tokens`) than the embeddings have rows, rows are added. Each new row is the
    mean of the old rows, so that no random numbers are needed. New rows are not trained.
    """
    import torch
    from transformers import GenerationConfig
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    cuda = torch.cuda.is_available()
    options: dict[str, Any] = {"dtype": torch_dtype(dtype)}
    source = find_base(manifest, folder)
    names = [file["name"] for file in manifest["files"]]
    if (source / CONFIG).is_file():
        print(f"note: {source / CONFIG} is ignored, because it is not part of the base model {manifest['id']}")
    check_finite([source / file["name"] for file in manifest["files"]])
    attention = None
    if packed:
        attention = choose_attention(SimpleNamespace(**read_json(source / "config.json")), cuda=cuda)
        register_attention()
    options |= {"attn_implementation": attention, "trust_remote_code": manifest["remote_code"]}
    if cuda:
        options["device_map"] = {"": 0}
    stored = stored_quantization(read_json(source / "config.json"), manifest["id"])
    if quantization != "none" and stored == "none":
        options["quantization_config"] = quantization_config(quantization)
    model = None
    if attention is not None:
        with suppress(KeyError):  # some model families look up attention functions in their own table
            model = _from_pretrained(source, names, options)
    if model is None or (packed and not packing_is_isolated(model)):
        model = None  # free the model before loading it again, because two copies may not fit in memory
        model = _from_pretrained(source, names, {**options, "attn_implementation": None})
    if packed and not packing_is_isolated(model):
        raise ParamsError(
            f"params.yaml: sequence.packing is true, but {type(model).__name__} can't keep the examples of a packed "
            "sequence apart. Set sequence.packing to false."
        )
    # The base model's generation settings (such as a repetition penalty) would change greedy answers.
    model.generation_config = GenerationConfig()
    embeddings = model.get_input_embeddings().weight
    if num_tokens > embeddings.shape[0]:
        old = embeddings.shape[0]
        model.resize_token_embeddings(num_tokens, mean_resizing=False)
        with torch.no_grad():
            for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
                layer.weight[old:] = layer.weight[:old].float().mean(dim=0).to(layer.weight.dtype)
    return model


def check_finite(files: list[Path]) -> None:
    """Raise DataError if a tensor in the safetensors files among `files` contains NaN or infinite values.

    Such a model can be loaded, but all its losses may be NaN. Only one tensor is in memory at a time.
    """
    import torch
    from safetensors import safe_open

    for path in files:
        if path.suffix != ".safetensors":
            continue
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open returns no mapping
                tensor = tensors.get_tensor(name)
                if not tensor.is_floating_point() or not tensor.numel():
                    continue
                if tensor.element_size() == 1:  # torch can't compare float8 values
                    tensor = tensor.float()
                # Both extremes are NaN if any value is NaN. Unlike isfinite, aminmax needs no memory.
                if not all(torch.isfinite(extreme) for extreme in torch.aminmax(tensor)):
                    number = int((~torch.isfinite(tensor)).sum())
                    raise DataError(
                        f"{path}: the tensor {name} contains NaN or infinite values ({number:,} of "
                        f"{tensor.numel():,}), so the base model is damaged. Download it again, or use another one."
                    )


def _from_pretrained(source: Path, names: list[str], options: dict[str, Any]) -> Any:
    """Load the model from the named files with transformers, in evaluation mode. Raises DataError if loading fails."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        with only_files(source, names) as listed:
            model, info = AutoModelForCausalLM.from_pretrained(
                listed, local_files_only=True, output_loading_info=True, use_safetensors=True, **options
            )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise DataError(f"transformers can't load the base model in {source}: {first_line(error)}") from None
    if found := mismatches(info):  # transformers would fill missing tensors with random numbers
        raise DataError(f"the weights in {source} do not fit the model: {describe_mismatches(found)}.")
    # PEFT reads the vocabulary's size from this folder when it saves an adapter. `listed` no longer exists then.
    model.name_or_path = model.config._name_or_path = str(source)
    model.eval()
    for module in model.modules():
        # Weights that were quantized elsewhere may specify another dtype. With float16, training can overflow.
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = torch.bfloat16
        # In evaluation mode, bitsandbytes repacks nf4 weights for AVX512-BF16. From then on, even during training,
        # bitsandbytes uses a kernel that does not support gradients. The kernel's results also differ from those on
        # processors without AVX512-BF16.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def quantization_config(quantization: Quantization) -> Any:
    """Return the bitsandbytes configuration for int8, or for nf4 with double quantization and bf16 compute (QLoRA)."""
    import torch
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def save_adapter(model: Any, folder: Path, manifest: dict[str, Any]) -> None:
    """Write the adapter in PEFT's format, without anything that differs between machines or runs.

    PEFT also writes the local path of the base model, PEFT's version and a README, and lists the targets in the
    arbitrary order of a set. This function replaces the path, removes the version and the README, and sorts the
    targets.
    """
    model.save_pretrained(folder, save_embedding_layers=False)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("peft_version", None)
    config |= base_reference(manifest)
    for key in ("target_modules", "target_parameters"):
        if isinstance(config[key], list):
            config[key] = sorted(config[key])
    write_json(path, dict(sorted(config.items())))
    for file in folder.iterdir():
        if file.name not in ADAPTER_FILES:
            file.unlink()


def load_adapter(model: Any, folder: Path, manifest: dict[str, Any]) -> Any:
    """Add the adapter in `folder` to the base model, in evaluation mode.

    Raises DataError if the adapter was trained for a different base model or the adapter's files are damaged, and
    MachineError if a file is missing.
    """
    from peft import PeftModel

    check_adapter(folder, manifest)  # if the weights were missing, PEFT would look for them on the Hub
    try:
        return PeftModel.from_pretrained(model, folder).eval()
    except Exception as error:  # noqa: BLE001 - for an invalid config, PEFT raises errors of many classes
        raise DataError(f"PEFT can't load the adapter in {folder}: {first_line(error)}") from None


def load_trained(
    manifest: dict[str, Any], folder: Path, tokenizer_folder: Path, adapter: Path | None, quantization: Quantization
) -> tuple[Any, Any]:
    """Load the tokenizer and the base model, and add the adapter unless `adapter` is None.

    A local path in the manifest is relative to `folder`.
    """
    tokenizer = load_tokenizer(tokenizer_folder)
    model = load_base(manifest, folder, len(tokenizer), quantization)
    return tokenizer, model if adapter is None else load_adapter(model, adapter, manifest)
