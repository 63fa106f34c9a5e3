"""Packs examples into sequences, stores the sequences in Arrow files, and collates the sequences into tensors.

A packed sequence is a concatenation of examples. `seq_lengths` contains the lengths of the examples. `position_ids`
restarts at 0 at the start of each example. From these restarts, the attention code determines where each example
begins, so that tokens do not attend to other examples.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recipe.core.io import reading

if TYPE_CHECKING:
    import torch

IGNORED = -100  # the label that torch's cross entropy ignores
PackedExample = tuple[np.ndarray, np.ndarray, int]  # input_ids, completion_mask and the number of the row


def pack_best_fit(lengths: list[int], max_length: int) -> list[list[int]]:
    """Assign examples to sequences of up to `max_length` tokens. Return the indices of the examples in each sequence.

    The algorithm is best-fit decreasing. It processes the examples from longest to shortest, and adds each example to
    the fullest sequence with enough room. Examples of equal length keep their order.

    The number of sequences never exceeds 11/9 OPT + 4, where OPT is the smallest possible number of sequences (Johnson
    et al. 1974, SIAM J. Comput. 3).
    """
    sequences: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(max_length + 1)]
    rooms = 0  # bit r is set if by_room[r] is not empty, so the tightest fit is found in a single step
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[index]
        assert 0 < length <= max_length, (length, max_length)
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            number = by_room[room].pop()
            if not by_room[room]:
                rooms &= ~(1 << room)
        else:
            room, number = max_length, len(sequences)
            sequences.append([])
        sequences[number].append(index)
        by_room[room - length].append(number)
        rooms |= 1 << (room - length)
    return sequences


def write_sequences(path: Path, sequences: Iterable[list[PackedExample]], vocab_size: int) -> None:
    """Write sequences of examples as an Arrow stream that `datasets` can memory-map.

    Each column contains lists. `input_ids` is uint16, or uint32 if the vocabulary has more than 65,536 tokens.
    `completion_mask` is bool and has the same length as `input_ids`. `seq_lengths` and `rows` are uint32 and contain
    the lengths and the row numbers of the examples.
    """
    import pyarrow as pa

    ids = pa.from_numpy_dtype(token_dtype(vocab_size))
    schema = pa.schema(
        [
            ("input_ids", pa.list_(ids)),
            ("completion_mask", pa.list_(pa.bool_())),
            ("seq_lengths", pa.list_(pa.uint32())),
            ("rows", pa.list_(pa.uint32())),
        ]
    )
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for batch in batched(sequences, 1000):
            examples = [example for sequence in batch for example in sequence]
            sizes = [sum(len(ids) for ids, _, _ in sequence) for sequence in batch]
            values = [
                np.concatenate([ids for ids, _, _ in examples]),
                np.concatenate([completion_mask for _, completion_mask, _ in examples]),
                np.array([len(ids) for ids, _, _ in examples]),
                np.array([row for _, _, row in examples]),
            ]
            num_examples = [len(sequence) for sequence in batch]
            counts = [sizes, sizes, num_examples, num_examples]
            arrays = [
                pa.ListArray.from_arrays(
                    pa.array(np.concatenate([[0], np.cumsum(count)]), pa.int32()),
                    pa.array(value, type=field.type.value_type),
                )
                for value, count, field in zip(values, counts, schema, strict=True)
            ]
            writer.write_batch(pa.record_batch(arrays, schema=schema))


def read_sequences(path: Path) -> Any:
    """Open the sequences in a file as a memory-mapped `datasets.Dataset` whose rows contain NumPy arrays."""
    import pyarrow as pa
    from datasets import Dataset

    with reading(path, pa.ArrowException):
        return Dataset.from_file(str(path)).with_format("numpy")


def collate(rows: list[dict[str, Any]], pad_token_id: int) -> "dict[str, torch.Tensor]":
    """Collate sequences into int64 tensors of shape (batch, seq): `input_ids`, `labels` and `position_ids`.

    Labels are IGNORED outside the completion mask. The label of the first token of each example is also IGNORED,
    because no token of the example precedes it. Shorter sequences are padded. The padding forms an additional example
    without labels.
    """
    import torch

    width = max(len(row["input_ids"]) for row in rows)
    input_ids = np.full((len(rows), width), pad_token_id, dtype=np.int64)
    labels = np.full((len(rows), width), IGNORED, dtype=np.int64)
    position_ids = np.zeros((len(rows), width), dtype=np.int64)
    for number, row in enumerate(rows):
        size, lengths = len(row["input_ids"]), np.asarray(row["seq_lengths"], dtype=np.int64)
        starts = np.cumsum(lengths) - lengths
        completion_mask = np.array(row["completion_mask"], dtype=bool)
        completion_mask[starts] = False
        input_ids[number, :size] = row["input_ids"]
        labels[number, :size][completion_mask] = input_ids[number, :size][completion_mask]
        position_ids[number, :size] = np.arange(size) - np.repeat(starts, lengths)
        position_ids[number, size:] = np.arange(width - size)
    arrays = {"input_ids": input_ids, "labels": labels, "position_ids": position_ids}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def add_loss_positions(batch: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """Return a collated batch with `loss_positions` added.

    `loss_positions` contains the indices of the tokens that predict a label. The indices refer to the flattened batch.
    The tensor is int64 and has shape (num_loss_positions,). It is computed on the CPU. On a GPU, selecting by a mask
    would force a synchronization, because the CPU needs the number of selected positions.
    """
    completion_mask = batch["labels"].new_zeros(batch["labels"].shape, dtype=bool)
    completion_mask[:, :-1] = batch["labels"][:, 1:] != IGNORED
    return {**batch, "loss_positions": completion_mask.flatten().nonzero().flatten()}


def rows_of_loss_positions(
    sequences: list[dict[str, Any]], width: int, loss_positions: "torch.Tensor"
) -> "torch.Tensor":
    """Return the row number of each loss position of a batch, as an int64 tensor of shape (num_loss_positions,).

    `sequences` are the sequences of the batch, and `width` is the length to which `collate` padded them.
    """
    import torch

    rows = np.full((len(sequences), width), -1, dtype=np.int64)
    for number, sequence in enumerate(sequences):
        rows[number, : len(sequence["input_ids"])] = np.repeat(sequence["rows"], sequence["seq_lengths"])
    return torch.from_numpy(rows).flatten()[loss_positions]


def token_dtype(vocab_size: int) -> type:
    """Return the dtype for a vocabulary's token ids: uint16 for up to 65,536 tokens, otherwise uint32."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield the items in lists of `size` items. The last list may be shorter."""
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
