"""Builds the micro-batches of the training: padded sequences, their loss positions, and the inputs of the attention."""

from typing import Any

from recipe.model.packed_attention import add_cu_seqlens
from recipe.tokens.packing import add_loss_positions, collate, rows_of_loss_positions


def make_batch(sequences: list[dict[str, Any]], pad_token_id: int) -> dict[str, Any]:
    """Return the inputs of PackedTrainer for a micro-batch of sequences: what `collate` returns and more.

    The other inputs are `loss_positions`, `rows` (the row number of each loss position), and those of the attention.
    """
    batch = add_loss_positions(collate(sequences, pad_token_id))
    rows = rows_of_loss_positions(sequences, batch["input_ids"].shape[1], batch["loss_positions"])
    return {**add_cu_seqlens(batch), "rows": rows}
