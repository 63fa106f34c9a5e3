"""What training needs: memory, from a trace of the model that allocates nothing, and floating-point operations.

recipe/planning/activation_trace.py traces; here its bytes are summed with those of weights, optimiser and logits.
"""

from dataclasses import dataclass
from typing import Any

from recipe.model.load import check_target_modules
from recipe.model.processor import Dtype
from recipe.planning.activation_trace import empty_model, trace

# Bytes a parameter of a quantised linear layer. nf4: half a byte, an 8-bit scale for each block of 64 and a 32-bit one
# for each 256 of those (Dettmers et al. 2023, arXiv 2305.14314, section 3).
QUANTIZED_BYTES = {"int8": 1.0, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}
ADAPTER_BYTES = 16  # a parameter in fp32: itself, its gradient, AdamW's two moments
CUDA_CONTEXT_BYTES = 600_000_000  # the driver's and the libraries' own, and what the allocator cannot use


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of memory by part, parameters, and operations a token. `peak` is their sum at the worst moment."""

    weights: int
    adapter: int
    activations: int
    logits: int
    other: int
    parameters: int
    trainable: int
    flops_per_token: float

    @property
    def peak(self) -> int:
        """Bytes at the worst moment: the loss, or a layer's backward pass where that holds more."""
        return self.weights + self.adapter + self.activations + self.logits + self.other


def count_parameters(config: Any) -> int:
    """The parameters of a causal LM; shared ones count once."""
    import torch

    return sum(weight.numel() for weight in empty_model(config, torch.float32).parameters())


def estimate_training_memory(
    config: Any, lora: Any, *, quantization: str, activation_checkpointing: bool, micro_batch_size: int,
    max_length: int, trained_fraction: float, cuda: bool, dtype: Dtype = "auto",
) -> MemoryEstimate:  # fmt: skip
    """What one training step needs. `lora` is the section of params.yaml; `trained_fraction` the tokens in the loss.

    Raises ParamsError for target modules that the model does not have, and Untraceable.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    from recipe.model.chunked_loss import chunk_tokens, is_frozen_linear
    from recipe.model.fused_lora import patch_lora_layers

    mixed = cuda or dtype == "bfloat16"
    weight_dtype = torch.bfloat16 if mixed else torch.float32
    model = empty_model(config, weight_dtype, wide_attention=mixed and not cuda)
    weights, largest = _weight_bytes(model, quantization, weight_dtype)
    parameters = sum(weight.numel() for weight in model.parameters())
    lookup, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    embeddings = 0 if head is lookup else lookup.numel()  # looking a row up is no multiplication; a tied head is one
    check_target_modules(model, lora.target_modules)
    if quantization != "none":  # prepare_model_for_kbit_training puts what is not quantised in fp32
        quantised = {id(one.weight) for one in _quantised_layers(model)}
        for weight in model.parameters():
            if id(weight) not in quantised:
                weight.data = weight.data.float()
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    with torch.device("meta"):
        adapter = LoraConfig(
            r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM"
        )
        model = get_peft_model(model, adapter).train()
    patch_lora_layers(model)
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    tokens, size = micro_batch_size * max_length, weight_dtype.itemsize
    saved, head_is_all = trace(model, micro_batch_size, max_length, mixed=mixed)
    vocab_size, hidden_size = config.get_text_config().vocab_size, config.get_text_config().hidden_size
    projected = int(tokens * trained_fraction) if head_is_all else tokens  # else TRL's loss takes every position
    if head_is_all and is_frozen_linear(model.get_base_model().get_output_embeddings()):
        # Some tokens at a time: their logits, on CUDA a copy in fp32, and the log-softmax; the gradient of all of them.
        at_once = min(projected, chunk_tokens(vocab_size, "cuda" if cuda else "cpu"))
        logits = at_once * vocab_size * (size + 8 if mixed else 8) + 2 * projected * hidden_size * size
    else:  # logits in the model's dtype and in fp32, their log-softmax, both gradients
        logits = projected * vocab_size * (2 * size + 8 if mixed else 12)
    # The loss's moment, or the backward pass of a layer: its activations' gradients, about half as large at any time.
    layers = config.get_text_config().num_hidden_layers
    layer = saved // layers
    if activation_checkpointing:
        # Every layer's input stays; a layer's own activations are there one layer at a time, after the logits.
        # A quantised model's norms are in fp32, and so is what its layers hand on.
        inputs = layers * tokens * hidden_size * (4 if quantization != "none" else size)
        saved = inputs + max(layer + layer // 2 - logits, 0)
    else:
        saved += max(layer // 2 - logits, 0)
    # A quantised layer is expanded while it computes.
    other = (CUDA_CONTEXT_BYTES if cuda else 0) + (largest * 2 if quantization != "none" else 0)
    if quantization != "none" and mixed:
        other += head.numel() * 2  # the fp32 head's copy in bf16 under autocast
    passes = 6 if activation_checkpointing else 4  # 2 N a token forward, 2 N backward, 2 N to compute it again
    return MemoryEstimate(
        weights=weights, adapter=trainable * ADAPTER_BYTES, activations=saved, logits=logits, other=other,
        parameters=parameters, trainable=trainable,
        flops_per_token=float(passes * (parameters - embeddings) + 6 * trainable),
    )  # fmt: skip


def _weight_bytes(model: Any, quantization: str, dtype: Any) -> tuple[int, int]:
    """Bytes of the frozen weights, and the parameters of the largest quantised layer."""
    if quantization == "none":
        return sum(weight.numel() for weight in model.parameters()) * dtype.itemsize, 0
    layers = _quantised_layers(model)
    small = sum(one.weight.numel() for one in layers)
    # prepare_model_for_kbit_training puts what is not quantised in fp32.
    rest = (sum(weight.numel() for weight in model.parameters()) - small) * 4
    return int(small * QUANTIZED_BYTES[quantization]) + rest, max(one.weight.numel() for one in layers)


def _quantised_layers(model: Any) -> list[Any]:
    """The linear layers that bitsandbytes takes: all but the head."""
    head = model.get_output_embeddings()
    return [one for one in model.modules() if type(one).__name__ in {"Linear", "Conv1D"} and one is not head]
