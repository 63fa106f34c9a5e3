"""Stores the rows of a split and their tokens in columns, which take less memory than one object per row."""

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from recipe.core.errors import DataError
from recipe.prepare.examples import SHOWN_MISTAKES, Example
from recipe.prepare.tokenize import ROLES, Tokens
from recipe.tokens.packing import PackedExample, token_dtype


class SplitTokens:
    """The rows of a split, stored in columns.

    Depending on `on_overlong`, a row that is longer than `max_length` is truncated, dropped, or listed in `too_long`. A
    row is also dropped if truncation would leave no token in the loss. `counts` contains the numbers of truncated and
    dropped rows. `num_split` is the number of completions that are encoded separately (see Tokens).
    """

    def __init__(self, max_length: int, on_overlong: Literal["truncate", "drop", "error"], vocab_size: int) -> None:
        self.max_length, self.on_overlong, self.vocab_size = max_length, on_overlong, vocab_size
        self.dtype = np.dtype(token_dtype(vocab_size))
        self.counts = {"truncated": 0, "dropped_overlong": 0, "dropped_without_answer": 0}
        self.too_long: list[str] = []
        self.num_split = 0
        self._by_role = np.zeros((len(ROLES), 2), np.int64)  # the numbers of tokens and of loss tokens per role
        self._ids, self._completion_mask, self._ends = bytearray(), bytearray(), array("q", [0])
        self._rows = array("I")  # the number of each kept row, counted from 0 and including the dropped rows
        self._files: list[str] = []
        self._places: list[str] = []
        self._categories: list[str] = []
        self._num_chars, self._num_tokens, self._num_before = array("I"), array("I"), array("I")

    def add(self, example: Example, tokens: Tokens) -> bool:
        """Add a row, and return whether its tokens are kept."""
        input_ids, completion_mask, roles, num_split = tokens
        self._files.append(example.file)
        self._places.append(example.place)
        self._categories.append(example.category)
        self._num_chars.append(example.num_chars)
        self._num_tokens.append(len(input_ids))
        # The first token of an example is never in the loss, because no preceding token predicts it.
        before = 1 + int(completion_mask[1:].argmax()) if len(completion_mask) > 1 else 1
        self._num_before.append(before)
        if len(input_ids) > self.max_length:
            if self.on_overlong == "error":
                self.too_long.append(f"  {example.file}, {example.place}: {len(input_ids)} tokens")
                return False
            if self.on_overlong == "drop":
                self.counts["dropped_overlong"] += 1
                return False
            if before >= self.max_length:
                self.counts["dropped_without_answer"] += 1
                return False
            input_ids, completion_mask = input_ids[: self.max_length], completion_mask[: self.max_length]
            roles = roles[: self.max_length]
            self.counts["truncated"] += 1
        self.num_split += num_split
        self._by_role[:, 0] += np.bincount(roles, minlength=len(ROLES))
        self._by_role[:, 1] += np.bincount(roles[1:][completion_mask[1:]], minlength=len(ROLES))
        self._ids += input_ids.astype(self.dtype).data
        self._completion_mask += completion_mask.data
        self._ends.append(self._ends[-1] + len(input_ids))
        self._rows.append(len(self._files) - 1)
        return True

    @property
    def lengths(self) -> list[int]:
        """The number of tokens in each kept row."""
        return np.diff(np.frombuffer(self._ends, np.int64)).tolist()

    @property
    def whole_lengths(self) -> list[int]:
        """The number of tokens in each row before cutting, including the dropped rows."""
        return self._num_tokens.tolist()

    @property
    def num_tokens(self) -> int:
        """The total number of tokens in the kept rows."""
        return self._ends[-1]

    @property
    def by_role(self) -> dict[str, dict[str, int]]:
        """For each role that occurs in the kept rows, the numbers of tokens and of loss tokens."""
        return {
            role: {"tokens": tokens, "loss_tokens": loss_tokens}
            for role, (tokens, loss_tokens) in zip(ROLES, self._by_role.tolist(), strict=True)
            if tokens
        }

    @property
    def num_loss_tokens(self) -> int:
        """The number of loss positions. The first token of each row is not counted, because no token predicts it."""
        completion_mask, starts = np.frombuffer(self._completion_mask, bool), np.frombuffer(self._ends, np.int64)[:-1]
        return int(np.count_nonzero(completion_mask) - np.count_nonzero(completion_mask[starts]))

    def sequences(self, packed: list[list[int]]) -> Iterator[list[PackedExample]]:
        """Yield each sequence as a list of rows, each as (input_ids, completion_mask, number).

        The number is the row's place in `facts`. `packed` contains the indices of kept rows for each sequence.
        """
        ids, completion_mask = np.frombuffer(self._ids, self.dtype), np.frombuffer(self._completion_mask, bool)
        for indices in packed:
            places = [(slice(self._ends[index], self._ends[index + 1]), self._rows[index]) for index in indices]
            yield [(ids[place], completion_mask[place], row) for place, row in places]

    def facts(self, split: str) -> Any:
        """Return an Arrow table with the split, file, place, category and lengths of all rows, including dropped rows.

        The lengths are measured before truncation. `num_before` is the number of tokens before the first loss token.
        """
        import pyarrow as pa

        splits = [split] * len(self._files)
        texts = {"split": splits, "file": self._files, "place": self._places, "category": self._categories}
        sizes = {"num_chars": self._num_chars, "num_tokens": self._num_tokens, "num_before": self._num_before}
        columns = {name: pa.array(column, pa.string()) for name, column in texts.items()}
        return pa.table(columns | {name: pa.array(np.frombuffer(size, np.uint32)) for name, size in sizes.items()})


def check_overlong(too_long: list[str], max_length: int) -> None:
    """Raise DataError if `too_long` is not empty. SplitTokens fills this list if `on_overlong` is `error`."""
    if too_long:
        raise DataError(
            f"{len(too_long)} rows exceed sequence.max_length ({max_length} tokens). Raise the limit, or set "
            "sequence.on_overlong to truncate or drop.\n" + "\n".join(too_long[:SHOWN_MISTAKES])
        )


def write_facts(path: Path, tables: list[Any]) -> None:
    """Write the tables of all splits to a file as a single Arrow stream."""
    import pyarrow as pa

    table = pa.concat_tables(tables).combine_chunks()
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
