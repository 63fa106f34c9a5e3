"""Attention by document: each example of a packed sequence attends to itself alone, and no (seq, seq) mask is made.

transformers isolates packed examples with a dense mask, under which `scaled_dot_product_attention` computes every pair
of positions in a sequence. On a CPU a loop over the examples computes the same without the pairs that are masked.
On CUDA it is one call of torch's variable-length attention (Flash), given the cu_seqlens that `add_cu_seqlens` adds to
the batch. Models whose attention is more than plain causal are trained with the dense mask.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

NAME = "by_document"
CU_SEQLENS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
# What a model may ask of its attention that a loop of plain causal attention does not do.
LEAK = 1e-4  # an isolated example changes by rounding alone, about 1e-7 of the effect in fp32
MORE_THAN_CAUSAL = ("sliding_window", "softcap", "s_aux", "position_bias")


def add_cu_seqlens(batch: "dict[str, torch.Tensor]") -> dict[str, Any]:
    """A collated batch with the borders of its examples, under the names that transformers hands on to attention.

    Found on the CPU, so that no layer has to wait for the GPU: int32 (examples + 1,), and the longest one's tokens.
    """
    import torch

    positions = batch["position_ids"].flatten()
    starts = (positions == 0).nonzero().flatten()
    borders = torch.cat([starts, torch.tensor([len(positions)])]).int()
    longest = int(positions.max()) + 1
    return {**batch, **dict(zip(CU_SEQLENS, (borders, borders, longest, longest), strict=True))}


def choose_attention(config: Any, *, cuda: bool) -> str | None:
    """The attention to train a packed model with: `by_document` where it is exact, else None, transformers' choice.

    That is also for attention with dropout on CUDA, which one call of Flash leaves out, and a loop would be slow.
    """
    special = ("sliding_window", "attn_logit_softcapping", "attention_chunk_size")
    plain = all(getattr(config, name, None) is None for name in special)
    plain = plain and set(getattr(config, "layer_types", None) or []) <= {"full_attention"}
    dropout = any(getattr(config, name, 0) for name in ("attention_dropout", "attn_pdrop", "attn_dropout"))
    return NAME if plain and not (cuda and dropout) else None


def packing_is_isolated(model: Any) -> bool:
    """Whether the model, given two examples in one sequence, keeps each from seeing the other, and itself causal.

    Found out by trying: a model with attention code of its own may ignore the positions, or the mask that is not made.
    """
    import torch

    ids = torch.arange(10, device=model.device)[None]
    position_ids = torch.tensor([[*range(5), *range(5)]], device=model.device)
    outputs = []
    with torch.no_grad():
        for changed in (None, 0, 4):
            tried = ids.clone()
            if changed is not None:
                tried[0, changed] = 11
            try:
                outputs.append(model(input_ids=tried, position_ids=position_ids, use_cache=False).logits[0].float())
            except (torch.OutOfMemoryError, torch.AcceleratorError):
                raise
            except (AssertionError, AttributeError, KeyError, TypeError, RuntimeError):  # the last: a kernel's own no
                return False
    whole, first, last = outputs
    # What a change does where it must do nothing, beside what it does at its own token: rounding, or a leak.
    leaks = [(whole - first)[5:], (whole - last)[5:], (whole - last)[:4]]
    effect = min((whole - first)[0].abs().max(), (whole - last)[4].abs().max())
    return max(leak.abs().max() for leak in leaks).item() < LEAK * effect.item()


def register_attention() -> None:
    """Make `by_document` known to transformers, with a mask function that makes none."""
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
    **more: Any,
) -> "tuple[torch.Tensor, None]":
    """Causal attention within each run of positions that starts at 0.

    query is (batch, heads, seq, dim), key and value (batch, key heads, seq, dim), position_ids (batch, seq) int64;
    the result is (batch, seq, heads, dim), as transformers' attention functions give it.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    assert attention_mask is None and position_ids is not None and key.shape[2] == query.shape[2]
    assert all(more.get(name) is None for name in MORE_THAN_CAUSAL), more.keys()
    dtype = flash_dtype(query)
    if query.is_cuda and dtype and not dropout:
        query, key, value = (one.to(dtype) for one in (query, key, value))
        return _attend_at_once(query, key, value, scaling, position_ids, more), None
    if query.device.type == "cpu" and dtype:  # whose kernel takes half as long again for a backward pass in bf16
        with torch.autocast("cpu", enabled=False):
            query, key, value = (one.float() for one in (query, key, value))
            made, _ = attend_by_document(module, query, key, value, None, scaling, dropout, position_ids, **more)
        return made.to(dtype), None
    batch, _, seq, _ = query.shape
    rows = []
    for row, positions in enumerate(position_ids.expand(batch, seq)):
        starts = (positions == 0).nonzero().flatten().tolist()
        pieces = [
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
        rows.append(torch.cat(pieces, dim=2))
    return torch.cat(rows).transpose(1, 2).contiguous(), None


def flash_dtype(query: "torch.Tensor") -> "torch.dtype | None":
    """The dtype for Flash attention, which computes in bf16 and fp16 alone; None where the numbers are wider.

    Under autocast it is autocast's: a quantised base has norms in fp32, and they make some of q, k and v fp32.
    """
    import torch

    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
    return dtype if dtype.itemsize == 2 else None


def _attend_at_once(
    query: "torch.Tensor", key: "torch.Tensor", value: "torch.Tensor", scaling: float | None,
    position_ids: "torch.Tensor", more: dict[str, Any],
) -> "torch.Tensor":  # fmt: skip
    """All examples of a batch in one call; the shapes are those of `attend_by_document`."""
    from torch.nn.attention.varlen import varlen_attn

    batch, heads, seq, _ = query.shape
    if more.get(CU_SEQLENS[0]) is None:
        more = add_cu_seqlens({"position_ids": position_ids.expand(batch, seq).cpu()})
    borders, longest = more[CU_SEQLENS[0]].to(query.device), more[CU_SEQLENS[2]]
    flat = [one.transpose(1, 2).flatten(0, 1) for one in (query, key, value)]  # (tokens, heads, dim)
    causal = (-1, 0)
    made = varlen_attn(
        *flat, borders, borders, longest, longest, scale=scaling, window_size=causal, enable_gqa=key.shape[1] != heads
    )
    return made.view(batch, seq, heads, -1)
