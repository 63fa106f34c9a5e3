"""Finds special tokens that the base model never learned.

For example, a model that was never trained on chats has not learned its end-of-turn token.

    untrained_tokens(model, ids, special)    # the ids whose rows in the embeddings or in the head are untrained

LoRA on linear layers cannot change what such a token means, so a model may never learn to end an answer. PEFT can train
individual rows of the embeddings and of the head (`trainable_token_indices`).

A row counts as untrained if at least one of these conditions holds:

- All values in the row are almost 0.
- The row is almost the same as the row of another special or unused token.
- The row is almost the same as the mean of all rows. transformers and this project initialize new rows with this mean.
- The row's norm is as low as the norms of unused rows.
"""

from types import MethodType
from typing import Any

import torch

ALIKE = 1e-3  # rows are alike if their distance is at most this share of the median norm
MIN_UNUSED = 8  # minimum number of unused rows for a comparison of norms
MAX_UNUSED = 512  # maximum number of unused rows that other rows are compared with
LOW = 0.05  # the norms of unused rows are considered only if all are below this quantile of the norms of used rows


def untrained_tokens(model: Any, ids: list[int], special: set[int], num_tokens: int) -> list[int]:
    """Return, in ascending order, the special-token ids from `ids` whose rows are untrained.

    `special` contains the ids of all special and added tokens. `num_tokens` is the number of tokens in the tokenizer;
    rows from this index onward are unused.
    """
    wanted = sorted(special & set(ids))
    found: set[int] = set()
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    weights = {layer.weight.data_ptr(): layer.weight for layer in layers if layer is not None}
    for weight in weights.values():
        found.update(_untrained_rows(weight.detach(), wanted, special, num_tokens))
    return sorted(found)


def _untrained_rows(weight: torch.Tensor, wanted: list[int], special: set[int], num_tokens: int) -> list[int]:
    """Return the untrained rows among the `wanted` rows of a matrix of shape (vocabulary, hidden)."""
    norms = torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32)
    scale = norms.median()
    unused = list(range(num_tokens, len(weight)))[:MAX_UNUSED]
    mean = weight.mean(dim=0, dtype=torch.float32)
    others = sorted(special | set(unused))
    rows = weight[others].float()
    highest = norms[num_tokens:].max() if len(weight) - num_tokens >= MIN_UNUSED else torch.zeros(())
    if highest >= norms[:num_tokens].quantile(LOW):
        highest = torch.zeros(())  # the norms of unused rows are similar to those of other rows
    untrained = []
    for token in wanted:
        row = weight[token].float()
        distances = torch.linalg.vector_norm(rows - row, dim=1)
        distances[others.index(token)] = torch.inf
        to_mean = torch.linalg.vector_norm(mean - row)
        smallest = torch.stack([norms[token], to_mean, *([distances.min()] if len(others) > 1 else [])]).min()
        if smallest <= ALIKE * scale or norms[token] <= highest:
            untrained.append(token)
    return untrained


def prepare_rows(model: Any) -> None:
    """Prepare a PEFT model for training the rows of some tokens. A model without such rows is not changed.

    Rows of zeros are set to the mean of all rows. Otherwise, a norm layer would divide them by almost 0, and the
    gradient would be far too large. Rows are converted to fp32, because in bf16, small training updates would be lost.
    The embeddings look up the trained rows directly. Otherwise, PEFT would copy all embeddings in every forward pass,
    and compute the gradients of all of them.
    """
    for module in model.modules():
        if type(module).__name__ != "TrainableTokensLayer" or module.tied_adapter:
            continue
        weight = module.base_layer.weight.detach()
        scale = torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32).median()
        for rows in module.trainable_tokens_delta.values():
            rows.data = rows.data.float()
            small = torch.linalg.vector_norm(rows.data, dim=1) <= ALIKE * scale
            rows.data[small] = weight.mean(dim=0, dtype=torch.float32)
        if isinstance(module.base_layer, torch.nn.Embedding):
            module.forward_adapters = MethodType(_look_up, module)


def _look_up(self: Any, x: torch.Tensor, active_adapters: list[str], *args: Any, **kwargs: Any) -> torch.Tensor:
    """Return the embeddings of the ids in x. This function replaces TrainableTokensLayer.forward_adapters."""
    if not self.training or self.disable_adapters or self.merged or len(active_adapters) != 1:
        return type(self).forward_adapters(self, x, active_adapters, *args, **kwargs)
    rows = self.trainable_tokens_delta[active_adapters[0]]
    ids = torch.tensor(self.token_indices[active_adapters[0]], device=x.device)  # in ascending order
    frozen = self.base_layer(x)
    index = torch.searchsorted(ids, x).clamp(max=len(ids) - 1)
    trained = torch.nn.functional.embedding(index, rows).to(frozen.dtype)
    if (embed_scale := self._get_embed_scale()) is not None:
        trained = trained * embed_scale.to(frozen.dtype)
    return torch.where((ids[index] == x)[..., None], trained, frozen)
