"""Scores validation rows in pieces, so that the logits never need much memory, even with a large vocabulary.

score(model, rows, pad_token_id, batch_tokens, progress)    # for each row: loss, correct labels, loss positions
"""

from collections.abc import Iterator
from typing import Any

from recipe.core.services import Progress
from recipe.model.chunked_loss import chunk_tokens, logits_are_head_of_backbone
from recipe.tokens.packing import IGNORED, collate

Scores = list[tuple[float, int, int]]  # for each row: sum of losses, number of correct tokens, number of loss positions


def batches(lengths: list[int], batch_tokens: int) -> list[list[int]]:
    """Group the row indices into batches of rows with similar lengths.

    A batch has no more than `batch_tokens` tokens, including padding, unless it consists of a single longer row.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (lengths[index], index)):
        if groups and (len(groups[-1]) + 1) * lengths[index] <= batch_tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def score(model: Any, rows: Any, pad_token_id: int, batch_tokens: int, progress: Progress) -> Scores:
    """Score each row with the given PEFT model.

    Returns, for each row, the sum of losses (nats), the number of labels that the model ranks first, and the number of
    loss positions.
    """
    import torch
    from torch.nn.functional import cross_entropy

    scores: Scores = [(0.0, 0, 0)] * len(rows)
    lengths = [int(row["seq_lengths"][0]) for row in rows]
    groups = batches(lengths, batch_tokens)
    base = model.get_base_model()
    head_is_plain = logits_are_head_of_backbone(model, base.base_model, base.get_output_embeddings())
    for indices in progress(iter(groups), "loss", len(groups)):
        batch = collate([rows[index] for index in indices], pad_token_id)
        # Padding is on the right, so with causal attention, no real token attends to padding.
        ids, labels = batch["input_ids"].to(model.device), batch["labels"][:, 1:].to(model.device)
        with torch.inference_mode():
            hidden = base.base_model(input_ids=ids, use_cache=False)[0] if head_is_plain else None
            for place, index in enumerate(indices):
                positions = (labels[place] != IGNORED).nonzero().flatten()
                loss, num_correct = 0.0, 0
                pieces = (
                    _logits(model, ids[place], positions) if hidden is None
                    else _logits_of_hidden(base.get_output_embeddings(), hidden[place][positions])
                )  # fmt: skip
                targets = labels[place][positions]
                for start, logits in pieces:
                    wanted = targets[start : start + len(logits)]
                    loss += cross_entropy(logits, wanted, reduction="sum").item()
                    num_correct += int((logits.argmax(-1) == wanted).sum())
                scores[index] = (loss, num_correct, len(targets))
    return scores


def _logits_of_hidden(head: Any, hidden: Any) -> Iterator[tuple[int, Any]]:
    """Compute the logits from `hidden`, and yield them in pieces, each with its start index in `hidden`.

    Each piece has the shape (tokens, vocabulary) and is in fp32. `hidden` has the shape (tokens, hidden).
    """
    size = chunk_tokens(len(head.weight), hidden.device.type)
    for start in range(0, len(hidden), size):
        yield start, head(hidden[start : start + size]).float()


def _logits(model: Any, input_ids: Any, positions: Any) -> Iterator[tuple[int, Any]]:
    """Yield the same pieces as `_logits_of_hidden`, for a model that modifies its head's logits.

    For example, the model may apply a soft cap. The model runs once for each piece. `input_ids` has the shape (seq,).
    """
    size = chunk_tokens(model.get_output_embeddings().weight.shape[0], input_ids.device.type)
    for start in range(0, len(positions), size):
        kept = positions[start : start + size]
        yield start, model(input_ids=input_ids[None], use_cache=False, logits_to_keep=kept).logits[0].float()
