"""Merges a LoRA adapter into the weights of its base model, with only one file of weights in memory at a time.

    merge(base, names, adapter, folder, dtype=torch.float32, num_tokens=1024)

A layer with the weight W becomes W + (alpha / r) * B A (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language
Models", section 4.1), computed in fp32. Trained rows of the embeddings and of the head replace the base model's rows.
If the tokenizer has more tokens than the embeddings have rows, rows are added as for training (recipe/model/load.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from recipe.core.adapter import CONFIG, WEIGHTS
from recipe.core.io import read_json, write_json
from recipe.model.processor import torch_dtype

INDEX = "model.safetensors.index.json"
IN_PEFT = "base_model.model."  # PEFT puts this before the name of each module of the model
LORA_A, LORA_B = ".lora_A.weight", ".lora_B.weight"
ROWS = ".token_adapter.trainable_tokens_delta"
# Options of PEFT's LoraConfig that change the formula. The train stage uses none of them.
UNSUPPORTED = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "target_parameters")


@dataclass(frozen=True)
class Updates:
    """What an adapter changes. The keys are names of weights in the model.

    `layers` contains the matrices A of shape (r, in) and B of shape (out, r). `rows` contains ids of tokens and their
    rows, of shape (tokens, hidden).
    """

    scale: float
    layers: dict[str, tuple[torch.Tensor, torch.Tensor]]
    rows: dict[str, tuple[list[int], torch.Tensor]]

    @property
    def names(self) -> set[str]:
        """The names of all weights that change."""
        return {*self.layers, *self.rows}


def read_updates(adapter: Path) -> Updates | None:
    """Read the adapter in a folder. Return None if it is more than LoRA on layers and rows of tokens."""
    config, weights = read_json(adapter / CONFIG), load_file(adapter / WEIGHTS)
    if any(config.get(name) for name in UNSUPPORTED) or config.get("bias", "none") != "none":
        return None
    layers, rows = {}, {}
    for name in list(weights):
        module = name.removeprefix(IN_PEFT)
        if module.endswith(LORA_A):
            module = module.removesuffix(LORA_A)
            pair = weights.pop(name), weights.pop(IN_PEFT + module + LORA_B)
            layers[f"{module}.weight"] = pair
        elif module.endswith(ROWS):
            module = module.removesuffix(ROWS)
            ids = config["trainable_token_indices"][module.rsplit(".", 1)[-1]]
            rows[f"{module}.weight"] = (ids, weights.pop(name))
    if weights:  # of another kind
        return None
    return Updates(config["lora_alpha"] / config["r"], layers, rows)


def skeleton(source: Path, *, trust_remote_code: bool) -> Any:
    """Return the model that a folder's config describes, on the meta device, which needs no memory for weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def names_in_model(files: list[Path], model: Any) -> dict[str, str]:
    """Map the names of the stored tensors to those of the model's weights, for tensors with the same name and shape.

    Some files leave out the first part of a name, such as `model.`, or add it.
    """
    weights = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    prefix = f"{model.base_model_prefix}."
    found = {}
    for path in files:
        with safe_open(path, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open returns no mapping
                shape = tuple(tensors.get_slice(name).get_shape())
                for candidate in (name, prefix + name, name.removeprefix(prefix)):
                    if weights.get(candidate) == shape:
                        found[name] = candidate
                        break
    return found


class Merge:
    """A merge of one adapter into one base model.

    `files` are the base model's safetensors files. `rounded`, if given, replaces the weight of each layer in
    `rounded_layers` before the update is added: an adapter that was trained on quantized weights was trained on
    weights that differ from the stored ones.
    """

    def __init__(
        self, files: list[Path], updates: Updates, model: Any, num_tokens: int, dtype: torch.dtype,
        rounded: Callable[[torch.Tensor], torch.Tensor] | None = None, rounded_layers: frozenset[str] = frozenset(),
    ) -> None:  # fmt: skip
        self.files, self.updates, self.num_tokens, self.dtype = files, updates, num_tokens, dtype
        self.rounded, self.rounded_layers = rounded, rounded_layers
        self.names = names_in_model(files, model)
        embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
        modules = dict(model.named_modules(remove_duplicate=False))
        self.embeddings = next(f"{name}.weight" for name, module in modules.items() if module is embeddings)
        self.head = next((f"{name}.weight" for name, module in modules.items() if module is head), None)
        self.is_tied = bool(model.config.get_text_config().tie_word_embeddings)
        self.transposed = {  # GPT-2's layers store weights as (in, out)
            f"{name}.weight" for name, module in modules.items() if type(module).__name__ == "Conv1D"
        }
        self.old_rows = len(embeddings.weight)

    def missing(self) -> set[str]:
        """Return the names of weights that the adapter changes, but that no file stores under a known name."""
        needed = self.updates.names | ({self.embeddings} if self.num_tokens > self.old_rows else set())
        return needed - set(self.names.values())

    def write(self, folder: Path) -> int:
        """Write the merged files, with the same names and tensors as the base model's. Return their size in bytes.

        The head is left out if it is tied to the embeddings, because its stored copy would be out of date.
        """
        assert not self.missing()
        places: dict[str, str] = {}
        size = 0
        for path in self.files:
            with safe_open(path, "pt") as stored:
                merged = {
                    name: self._merged(self.names.get(name), stored.get_tensor(name))
                    for name in stored.keys()  # noqa: SIM118 - safe_open returns no mapping
                    if not (self.is_tied and self.names.get(name) == self.head != self.embeddings)
                }
            save_file(merged, folder / path.name, {"format": "pt"})
            places |= dict.fromkeys(merged, path.name)
            size += sum(tensor.nbytes for tensor in merged.values())
        if len(self.files) > 1:
            write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))})
        return size

    def _merged(self, name: str | None, weight: torch.Tensor) -> torch.Tensor:
        """Return the merged weight. `name` is its name in the model, or None for a tensor that is copied."""
        if not weight.is_floating_point():
            return weight
        if self.rounded is not None and name in self.rounded_layers:
            weight = self.rounded(weight.T).T if name in self.transposed else self.rounded(weight)
        if name in self.updates.layers:
            a, b = self.updates.layers[name]
            update = self.updates.scale * (b.float() @ a.float())
            weight = weight.float() + (update.T if name in self.transposed else update)
        grown = name in (self.embeddings, self.head) and len(weight) == self.old_rows < self.num_tokens
        if grown:
            # Like load_base, in the dtype in which it loads the model, which may differ from the stored one.
            mean = weight.float().mean(dim=0).to(torch_dtype("auto")).float()
            weight = torch.cat([weight.float(), mean.expand(self.num_tokens - len(weight), -1)])
        if name in self.updates.rows:
            ids, rows = self.updates.rows[name]
            weight = weight.float().index_copy(0, torch.tensor(ids), rows.float())
        return weight.to(self.dtype).contiguous()


def quantized_layers(model: Any) -> frozenset[str]:
    """Return the names of the weights that bitsandbytes quantizes when transformers loads the model."""
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept = [*get_keys_to_not_convert(model), *(model._keep_in_fp32_modules or [])]
    return frozenset(
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, Conv1D | torch.nn.Linear) and should_convert_module(name, kept)
    )


def dequantized(quantization: str, dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that quantizes a weight of shape (out, in) as for training, and converts it back to fp32.

    `dtype` is the one in which the base model was loaded for training, before it was quantized.
    """
    import bitsandbytes as bnb

    def nf4(weight: torch.Tensor) -> torch.Tensor:
        # As in quantization_config (recipe/model/load.py): nf4 with double quantization.
        packed = bnb.nn.Params4bit(
            weight.to(dtype).contiguous(), requires_grad=False, compress_statistics=True, quant_type="nf4"
        ).to(weight.device)
        restored: torch.Tensor = bnb.functional.dequantize_4bit(packed.data, packed.quant_state)
        return restored.float()

    def int8(weight: torch.Tensor) -> torch.Tensor:
        packed = bnb.nn.Int8Params(weight.to(dtype).contiguous(), requires_grad=False).to(weight.device)
        restored: torch.Tensor = bnb.functional.int8_vectorwise_dequant(packed.data, packed.SCB)
        return restored.float()

    return {"nf4": nf4, "int8": int8}[quantization]
