"""Estimates the memory and the floating-point operations that training needs, by tracing the model without data.

recipe/planning/activation_trace.py computes the size of the activations. This module adds the sizes of the weights, the
optimizer state and the logits.
"""

from dataclasses import dataclass
from typing import Any

from recipe.model.processor import Dtype
from recipe.model.targets import describe_targets, expert_tensors, peft_config
from recipe.planning.activation_trace import empty_model, trace

# Bytes per parameter of a quantized linear layer. nf4 uses half a byte per parameter, an 8-bit scale per block of 64
# parameters, and a 32-bit scale per group of 256 blocks (Dettmers et al. 2023, arXiv 2305.14314, section 3).
QUANTIZED_BYTES = {"int8": 1.0, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}
ADAPTER_BYTES = 16  # per fp32 parameter: the parameter, its gradient, and AdamW's two moments
CUDA_CONTEXT_BYTES = 600_000_000  # memory that the driver and libraries use, or that the allocator can't use


@dataclass(frozen=True)
class MemoryEstimate:
    """The memory of each part in bytes, the numbers of parameters, and the floating-point operations per token."""

    weights: int
    adapter: int
    activations: int
    logits: int
    other: int
    parameters: int
    trainable: int
    flops_per_token: float
    targets: str | None  # what all-linear selects in a mixture of experts

    @property
    def peak(self) -> int:
        """The peak memory in bytes.

        The peak occurs in the loss or in a layer's backward pass, whichever needs more memory.
        """
        return self.weights + self.adapter + self.activations + self.logits + self.other


def count_parameters(config: Any) -> int:
    """Return the number of parameters of a causal LM. Shared parameters are counted once."""
    import torch

    return sum(weight.numel() for weight in empty_model(config, torch.float32).parameters())


def estimate_training_memory(
    config: Any, lora: Any, *, quantization: str, activation_checkpointing: bool, micro_batch_size: int,
    max_length: int, trained_fraction: float, cuda: bool, dtype: Dtype = "auto",
) -> MemoryEstimate:  # fmt: skip
    """Return the memory estimate for a training step.

    `lora` is the `lora` section of params.yaml, and `trained_fraction` is the fraction of tokens at loss positions.
    Raises ParamsError if the model lacks a target module, and Untraceable if the model's code needs real values.
    """
    import torch

    from recipe.model.chunked_loss import is_frozen_linear

    mixed = cuda or dtype == "bfloat16"
    weight_dtype = torch.bfloat16 if mixed else torch.float32
    model = empty_model(config, weight_dtype, wide_attention=mixed and not cuda)
    weights, largest = _weight_bytes(model, quantization, weight_dtype)
    parameters = sum(weight.numel() for weight in model.parameters())
    lookup, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    embeddings = 0 if head is lookup else lookup.numel()  # a lookup needs no multiplications; a tied head needs them
    targets, idle = describe_targets(lora, model), _idle_parameters(model, config)
    model = _add_adapter(model, lora, quantized=quantization != "none")
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    tokens, size = micro_batch_size * max_length, weight_dtype.itemsize
    saved, logits_from_head = trace(model, micro_batch_size, max_length, mixed=mixed)
    text_config = config.get_text_config()
    # If the logits are not the head's output, TRL's loss is used, which computes logits at every position.
    projected = int(tokens * trained_fraction) if logits_from_head else tokens
    chunked = logits_from_head and is_frozen_linear(model.get_base_model().get_output_embeddings())
    logits = _logits_bytes(projected, text_config, size, chunked=chunked, mixed=mixed, cuda=cuda)
    # Memory peaks in the loss or in the backward pass of a layer. The gradients in a layer take about half as much
    # memory as its activations.
    layers = text_config.num_hidden_layers
    layer = saved // layers
    if activation_checkpointing:
        # The input of every layer is saved. Other activations exist for only one layer at a time, after the logits are
        # freed. A quantized model has fp32 norms, so the outputs of its layers are fp32.
        inputs = layers * tokens * text_config.hidden_size * (4 if quantization != "none" else size)
        saved = inputs + max(layer + layer // 2 - logits, 0)
    else:
        saved += max(layer // 2 - logits, 0)
    # Each quantized layer is dequantized during its computation.
    other = (CUDA_CONTEXT_BYTES if cuda else 0) + (largest * 2 if quantization != "none" else 0)
    if quantization != "none" and mixed:
        other += head.numel() * 2  # autocast's bf16 copy of the fp32 head
    passes = 6 if activation_checkpointing else 4  # FLOP per token and parameter: 2 forward, 2 backward, 2 to recompute
    return MemoryEstimate(
        weights=weights, adapter=trainable * ADAPTER_BYTES, activations=saved, logits=logits, other=other,
        parameters=parameters, trainable=trainable, targets=targets,
        flops_per_token=float(passes * (parameters - embeddings - idle) + 6 * trainable),
    )  # fmt: skip


def _idle_parameters(model: Any, config: Any) -> int:
    """Return the number of parameters in the experts that a given token does not use, or 0 if there are no experts."""
    text_config, experts = config.get_text_config(), expert_tensors(model)
    if not experts:
        return 0
    return sum(
        weight.numel() - weight.numel() * text_config.num_experts_per_tok // weight.shape[0]
        for weight in experts.values()
    )


def _add_adapter(model: Any, lora: Any, *, quantized: bool) -> Any:
    """Add an adapter to a model on the meta device, patch the LoRA layers as in training, and return the model."""
    import torch
    from peft import get_peft_model

    from recipe.model.fused_lora import patch_lora_layers

    if quantized:  # prepare_model_for_kbit_training casts the other weights to fp32
        of_layers = {id(layer.weight) for layer in _quantized_layers(model)}
        for weight in model.parameters():
            if id(weight) not in of_layers:
                weight.data = weight.data.float()
    with torch.device("meta"):
        model = get_peft_model(model, peft_config(lora, model)).train()
    patch_lora_layers(model)
    return model


def _logits_bytes(tokens: int, config: Any, size: int, *, chunked: bool, mixed: bool, cuda: bool) -> int:
    """Return the size in bytes of the logits at `tokens` positions and of their gradients.

    `size` is the size of a weight in bytes.
    """
    from recipe.model.chunked_loss import chunk_tokens

    if not chunked:  # the logits, the fp32 log-softmax, and the fp32 gradient; if mixed, also a bf16 gradient
        return tokens * config.vocab_size * (2 * size + 8 if mixed else 12)
    # Each chunk needs memory for its logits, for an fp32 copy of the logits (only in mixed precision), and for the fp32
    # softmax. The last term covers the hidden states at all positions and their gradient.
    chunk = min(tokens, chunk_tokens(config.vocab_size, "cuda" if cuda else "cpu"))
    return chunk * config.vocab_size * (size + 8 if mixed else 8) + 2 * tokens * config.hidden_size * size


def _weight_bytes(model: Any, quantization: str, dtype: Any) -> tuple[int, int]:
    """Return the size of the frozen weights in bytes, and the number of parameters in the largest quantized layer."""
    if quantization == "none":
        return sum(weight.numel() for weight in model.parameters()) * dtype.itemsize, 0
    layers = _quantized_layers(model)
    quantized = sum(layer.weight.numel() for layer in layers)
    # prepare_model_for_kbit_training casts the other weights to fp32.
    rest = (sum(weight.numel() for weight in model.parameters()) - quantized) * 4
    return int(quantized * QUANTIZED_BYTES[quantization]) + rest, max(layer.weight.numel() for layer in layers)


def _quantized_layers(model: Any) -> list[Any]:
    """Return the linear layers that bitsandbytes quantizes: all of them except the head."""
    head = model.get_output_embeddings()
    return [layer for layer in model.modules() if type(layer).__name__ in {"Linear", "Conv1D"} and layer is not head]
