"""Loads the base model from its manifest, checks it, and puts an adapter on it.

Used by train, evaluate, `recipe chat` and the registered model. The stages pin how a CPU computes, so that the same
inputs give the same bytes on any x86-64 processor with AVX2.
"""

import json
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from recipe.core.errors import DataError, MachineError, ParamsError
from recipe.core.hub_cache import base_folder
from recipe.core.io import read_json, sha256_file, write_json
from recipe.model.packed_attention import choose_attention, packing_is_isolated, register_attention
from recipe.model.processor import Dtype, torch_dtype

Quantization = Literal["none", "int8", "nf4"]
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def find_base(manifest: dict[str, Any], folder: Path) -> Path:
    """The folder with the base model's files, each compared with the manifest's size and sha256."""
    from_hub = manifest["path"] is None
    source = base_folder(manifest, folder)
    restore = "`recipe fetch model` brings it back, and changes no output" if from_hub else "Put it back"
    for file in manifest["files"]:
        path = source / file["name"]
        if not path.is_file():
            raise MachineError(
                f"the base model {manifest['id']} is not at {source}: {file['name']} is missing. "
                f"{restore}; or name the folder that holds it in RECIPE_BASE_MODEL."
            )
        if path.stat().st_size != file["bytes"] or sha256_file(path) != file["sha256"]:
            raise DataError(
                f"{path} is not the file that was fetched for {manifest['id']} (sha256 {file['sha256']}). The adapter "
                f"was made for that one. {restore}"
                + ("." if from_hub else ", or run `dvc repro` to start from the new one.")
            )
    return source


def load_base(
    manifest: dict[str, Any], folder: Path, num_tokens: int, quantization: Quantization = "none", *,
    dtype: Dtype = "auto", packed: bool = False,
) -> Any:  # fmt: skip
    """The base model of a manifest, checked, in `torch_dtype(dtype)`. Its path is seen from `folder`.

    `packed` is for training on packed sequences: it picks the attention, and raises ParamsError for a model that can't
    keep the examples of a sequence apart.

    Its embeddings are enlarged where the tokenizer, of `num_tokens` tokens, has more than they have rows. The new
    rows are the mean of the others, so that no random number is drawn; nothing trains on them.
    """
    import torch
    from transformers import GenerationConfig
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    cuda = torch.cuda.is_available()
    options: dict[str, Any] = {"dtype": torch_dtype(dtype)}
    source = find_base(manifest, folder)
    attention = None
    if packed:
        attention = choose_attention(SimpleNamespace(**read_json(source / "config.json")), cuda=cuda)
        register_attention()
    options |= {"attn_implementation": attention, "trust_remote_code": manifest["remote_code"]}
    if cuda:
        options["device_map"] = {"": 0}
    if quantization != "none":
        options["quantization_config"] = quantization_config(quantization)
    model = None
    if attention is not None:
        with suppress(KeyError):  # a family that looks its attention up in a list of its own
            model = _from_pretrained(source, options)
    if model is None or (packed and not packing_is_isolated(model)):
        model = None  # before another is loaded: two may not fit
        model = _from_pretrained(source, {**options, "attn_implementation": None})
    if packed and not packing_is_isolated(model):
        raise ParamsError(
            f"params.yaml: sequence.packing is on, but {type(model).__name__} can't keep the examples of a packed "
            "sequence apart. Set it to false."
        )
    # A base's own settings for generation (a repetition penalty, say) would make greedy answers something else.
    model.generation_config = GenerationConfig()
    embeddings = model.get_input_embeddings().weight
    if num_tokens > embeddings.shape[0]:
        old = embeddings.shape[0]
        model.resize_token_embeddings(num_tokens, mean_resizing=False)
        with torch.no_grad():
            for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
                layer.weight[old:] = layer.weight[:old].float().mean(dim=0).to(layer.weight.dtype)
    return model


def _from_pretrained(source: Path, options: dict[str, Any]) -> Any:
    """The model as transformers loads it, in evaluation mode; raises DataError where it can't."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(source, local_files_only=True, **options).eval()
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"transformers can't load the base model in {source}: {reason}") from None
    for module in model.modules():
        # bitsandbytes repacks nf4 for AVX512-BF16 in evaluation mode. What it then multiplies with has no gradient, in
        # training too, and gives other numbers than a processor without it.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def quantization_config(quantization: Quantization) -> Any:
    """bitsandbytes' configuration: int8, or nf4 with double quantisation and bf16 compute (QLoRA's)."""
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


def check_target_modules(model: Any, target_modules: str | tuple[str, ...]) -> None:
    """Raise ParamsError where a named module is not one of the model's linear layers."""
    if isinstance(target_modules, str):
        return
    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if _is_linear(module)}
    unknown = [name for name in target_modules if name not in names]
    if unknown:
        raise ParamsError(
            f"params.yaml: lora.target_modules names {', '.join(unknown)}, which {type(model).__name__} does not have. "
            f"Its linear layers are {', '.join(sorted(names))}; `all-linear` takes all but the head."
        )


def _is_linear(module: Any) -> bool:
    """Linear layers, and GPT-2's Conv1D, which is one by another name."""
    return type(module).__name__ in {"Linear", "Conv1D", "Linear8bitLt", "Linear4bit"}


def save_adapter(model: Any, folder: Path, manifest: dict[str, Any]) -> None:
    """Write the adapter in PEFT's layout, without what differs between machines and runs.

    PEFT writes the base's path, its own version, the target modules in the order of a set, and a README.
    """
    model.save_pretrained(folder, save_embedding_layers=False)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("peft_version", None)
    config["base_model_name_or_path"] = base_name(manifest)
    if isinstance(config["target_modules"], list):
        config["target_modules"] = sorted(config["target_modules"])
    write_json(path, dict(sorted(config.items())))
    for file in folder.iterdir():
        if file.name not in ADAPTER_FILES:
            file.unlink()


def base_name(manifest: dict[str, Any]) -> str:
    """What an adapter calls its base: id@revision, or id@ the head of its files' sha256 where it has no revision."""
    return f"{manifest['id']}@{manifest['revision'] or 'sha256:' + manifest['sha256'][:16]}"


def load_adapter(model: Any, folder: Path, manifest: dict[str, Any]) -> Any:
    """The base model with the adapter on it, in evaluation mode. Refuses an adapter of another base."""
    from peft import PeftModel

    config = read_json(folder / "adapter_config.json")
    if config["base_model_name_or_path"] != base_name(manifest):
        raise DataError(
            f"the adapter in {folder} was made for {config['base_model_name_or_path']}, and this base is "
            f"{base_name(manifest)}. Run `dvc repro`."
        )
    return PeftModel.from_pretrained(model, folder).eval()
