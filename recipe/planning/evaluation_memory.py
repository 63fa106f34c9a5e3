"""Estimates the peak memory of the evaluate stage.

The estimate covers the weights, the adapter, one layer's activations, and either a batch's keys and values or a chunk's
logits, whichever is larger.
"""

from typing import Any

from recipe.planning.memory_estimate import CUDA_CONTEXT_BYTES, MemoryEstimate


def evaluation_memory(
    config: Any, training: MemoryEstimate, *, batch_tokens: int, longest: int, quantization: str, cuda: bool
) -> int:
    """Return the estimated peak memory of the evaluate stage in bytes.

    `training` is the estimate for the train stage. `longest` is the maximum number of tokens in a row, including
    generated tokens. A batch is assumed to contain `batch_tokens` or `longest` tokens, whichever is more.

    Memory peaks either during generation, which stores the keys and values of all layers, or during scoring, which
    computes one chunk of logits at a time. Both also need the activations of a single layer.
    """
    from recipe.model.chunked_loss import chunk_tokens

    text, size = config.get_text_config(), 2 if cuda else 4  # bf16 on CUDA, and fp32 on a CPU
    tokens = max(batch_tokens, longest)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cache = 2 * text.num_hidden_layers * heads * head_dim * tokens * size
    # A chunk's logits in the model's dtype, a copy of them in fp32, and their softmax in fp32.
    logits = min(tokens, chunk_tokens(text.vocab_size, "cuda" if cuda else "cpu")) * text.vocab_size * (size + 8)
    # The input and the output of a layer, its queries, keys and values, and the two inner activations of its MLP.
    width = 6 * text.hidden_size + 2 * (getattr(text, "intermediate_size", None) or 4 * text.hidden_size)
    weights = training.weights if quantization != "none" else training.parameters * size
    adapter = training.trainable * 4
    return weights + adapter + max(cache, logits) + tokens * width * size + (CUDA_CONTEXT_BYTES if cuda else 0)
