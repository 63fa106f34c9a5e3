"""Computes attention by document: each example in a packed sequence attends only to itself, without a (seq, seq) mask.

transformers isolates packed examples with a dense mask, so `scaled_dot_product_attention` processes every pair of
positions in a sequence, even the masked pairs. This module computes the same attention, but skips pairs of positions
from different examples. On a CPU, the code loops over the examples. On CUDA, the code makes a single call to torch's
variable-length Flash attention, with the cu_seqlens that `add_cu_seqlens` adds to the batch. Models that need more
than plain causal attention are trained with the dense mask.
"""

from typing import TYPE_CHECKING, Any

from recipe.core.errors import DataError

if TYPE_CHECKING:
    import torch

NAME = "by_document"
CU_SEQLENS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
# The isolation test changes one token, and measures how much the logits at that token's position change. Logits that
# must not depend on the token must change by less than this fraction of that amount. In fp32, the rounding error is
# about 1e-7.
LEAK = 1e-4
# Arguments that some models pass to the attention function, but that plain causal attention does not support.
MORE_THAN_CAUSAL = ("sliding_window", "softcap", "s_aux", "position_bias")


def add_cu_seqlens(batch: "dict[str, torch.Tensor]") -> dict[str, Any]:
    """Add cu_seqlens to a collated batch, under the argument names that transformers uses for attention functions.

    cu_seqlens is an int32 tensor of shape (examples + 1,). The length of the longest example is also added. Both are
    computed on the CPU, so that no layer has to wait for the GPU.
    """
    import torch

    positions = batch["position_ids"].flatten()
    starts = (positions == 0).nonzero().flatten()
    cu_seqlens = torch.cat([starts, torch.tensor([len(positions)])]).int()
    longest = int(positions.max()) + 1
    return {**batch, **dict(zip(CU_SEQLENS, (cu_seqlens, cu_seqlens, longest, longest), strict=True))}


def choose_attention(config: Any, *, cuda: bool) -> str | None:
    """Choose the attention for training on packed sequences: `by_document`, or None for transformers' default.

    Returns None for models that need more than plain causal attention, because `by_document` implements only plain
    causal attention. On CUDA, the function also returns None for models with attention dropout, because variable-length
    Flash attention does not support dropout, and a loop over the examples would be slow.
    """
    special = ("sliding_window", "attn_logit_softcapping", "attention_chunk_size")
    plain = all(getattr(config, name, None) is None for name in special)
    plain = plain and set(getattr(config, "layer_types", None) or []) <= {"full_attention"}
    dropout = any(getattr(config, name, 0) for name in ("attention_dropout", "attn_pdrop", "attn_dropout"))
    return NAME if plain and not (cuda and dropout) else None


def packing_is_isolated(model: Any) -> bool:
    """Return whether the model keeps two packed examples apart and remains causal.

    This function runs the model, because a model with its own attention code may ignore the positions or need a mask.
    Raises DataError if the logits contain NaN, because NaN values can't be compared.
    """
    import torch

    ids = torch.arange(10, device=model.device)[None]
    position_ids = torch.tensor([[*range(5), *range(5)]], device=model.device)
    outputs = []
    with torch.no_grad():
        for changed in (None, 0, 4):
            input_ids = ids.clone()
            if changed is not None:
                input_ids[0, changed] = 11
            try:
                outputs.append(model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits[0].float())
            except (torch.OutOfMemoryError, torch.AcceleratorError):
                raise
            # Models raise these errors for arguments that they can't use. Kernels that reject the input raise
            # RuntimeError.
            except (AssertionError, AttributeError, KeyError, TypeError, RuntimeError):
                return False
    whole, first, last = outputs
    if torch.isnan(whole).any():
        raise DataError("the base model computes NaN for a short text, so it is damaged. Use another base model.")
    # At positions that must not depend on the changed token, the logits may differ only by rounding errors. These
    # errors are measured relative to the effect at the changed token itself.
    leaks = [(whole - first)[5:], (whole - last)[5:], (whole - last)[:4]]
    effect = min((whole - first)[0].abs().max(), (whole - last)[4].abs().max())
    return max(leak.abs().max() for leak in leaks).item() < LEAK * effect.item()


def register_attention() -> None:
    """Register `by_document` with transformers, together with a mask function that does not create a mask."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, attend_by_document)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)


def attend_by_document(
    module: Any,
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: None,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_ids: "torch.Tensor | None" = None,
    **kwargs: Any,
) -> "tuple[torch.Tensor, None]":
    """Compute causal attention within each example. An example starts wherever `position_ids` is 0.

    `query` has shape (batch, heads, seq, dim), `key` and `value` have shape (batch, key heads, seq, dim), and
    `position_ids` has dtype int64 and shape (batch, seq). The output has shape (batch, seq, heads, dim), as
    transformers requires.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    assert attention_mask is None and position_ids is not None and key.shape[2] == query.shape[2]
    assert all(kwargs.get(name) is None for name in MORE_THAN_CAUSAL), kwargs.keys()
    dtype = flash_dtype(query)
    if query.is_cuda and dtype and not dropout:
        query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
        return _attend_varlen(query, key, value, scaling, position_ids, kwargs), None
    if query.device.type == "cpu" and dtype:  # the CPU kernel's backward pass takes 1.5 times as long in bf16
        with torch.autocast("cpu", enabled=False):
            query, key, value = (tensor.float() for tensor in (query, key, value))
            output, _ = attend_by_document(module, query, key, value, None, scaling, dropout, position_ids, **kwargs)
        return output.to(dtype), None
    batch, _, seq, _ = query.shape
    rows = []
    for row, positions in enumerate(position_ids.expand(batch, seq)):
        starts = (positions == 0).nonzero().flatten().tolist()
        outputs = [
            scaled_dot_product_attention(
                query[row : row + 1, :, start:end],
                key[row : row + 1, :, start:end],
                value[row : row + 1, :, start:end],
                dropout_p=dropout,
                is_causal=True,
                scale=scaling,
                enable_gqa=key.shape[1] != query.shape[1],
            )
            for start, end in zip(starts, [*starts[1:], seq], strict=True)
        ]
        rows.append(torch.cat(outputs, dim=2))
    return torch.cat(rows).transpose(1, 2).contiguous(), None


def flash_dtype(query: "torch.Tensor") -> "torch.dtype | None":
    """Return the dtype for Flash attention, or None for dtypes wider than 16 bits.

    Flash attention supports only bf16 and fp16. Under autocast, this function uses autocast's dtype rather than the
    query's, because the fp32 norms of a quantized base model may turn the query, the key or the value into fp32.
    """
    import torch

    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
    return dtype if dtype.itemsize == 2 else None


def _attend_varlen(
    query: "torch.Tensor", key: "torch.Tensor", value: "torch.Tensor", scaling: float | None,
    position_ids: "torch.Tensor", kwargs: dict[str, Any],
) -> "torch.Tensor":  # fmt: skip
    """Compute attention within each example of a batch in a single call. The inputs match `attend_by_document`."""
    from torch.nn.attention.varlen import varlen_attn

    batch, heads, seq, _ = query.shape
    if kwargs.get(CU_SEQLENS[0]) is None:
        kwargs = add_cu_seqlens({"position_ids": position_ids.expand(batch, seq).cpu()})
    cu_seqlens, longest = kwargs[CU_SEQLENS[0]].to(query.device), kwargs[CU_SEQLENS[2]]
    flat = [tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value)]  # (tokens, heads, dim)
    causal = (-1, 0)
    output = varlen_attn(
        *flat,
        cu_seqlens,
        cu_seqlens,
        longest,
        longest,
        scale=scaling,
        window_size=causal,
        enable_gqa=key.shape[1] != heads,
    )
    return output.view(batch, seq, heads, -1)
