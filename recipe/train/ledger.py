"""Records, for every optimizer step, the rows in it, their losses, and the norm of the gradients.

The records are deterministic, so a replay of a step must produce the same line. `recipe ledger` prints them.

ledger = Ledger()
ledger.add(loss, rows, token_losses)    # for each micro-batch
ledger.end_step(1, grad_norm=0.5, learning_rate=1e-4)
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recipe.core.format import shorten
from recipe.core.io import write_text

if TYPE_CHECKING:
    import torch

LEDGER = "ledger.jsonl"
SHOWN_CHARS = 150  # of a prompt, and of a completion


class Ledger:
    """The records of the steps so far, as lines of JSON, and the micro-batches of the current step.

    Each record has the keys `step`, `loss` (the mean over the loss positions of the step, in nats), `grad_norm` (before
    clipping), `learning_rate` and `rows`. `rows` contains [row, loss, num_loss_tokens] for each row, in the order of
    the batch. `loss` is the mean over the row's loss positions, or null if the model's own loss function was used.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.micro_batches: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = []

    def add(self, loss: "torch.Tensor", rows: "torch.Tensor", token_losses: "torch.Tensor | None") -> None:
        """Add a micro-batch to the current step. The tensors stay on their device until the step ends.

        `loss` is the micro-batch's contribution to the step's loss. `rows` contains the row number of each loss
        position, and `token_losses` its loss. Both have the shape (num_loss_positions,).
        """
        self.micro_batches.append((loss, rows, token_losses))

    def step_rows(self) -> list[list[Any]]:
        """Return [row, loss, num_loss_tokens] for each row of the current step."""
        records = []
        for _, rows, token_losses in self.micro_batches:
            numbers = rows.cpu().numpy()
            starts = np.flatnonzero(np.diff(numbers, prepend=-1))  # the loss positions of a row follow one another
            counts = np.diff(starts, append=len(numbers))
            losses: list[float | None] = [None] * len(starts)
            if token_losses is not None and len(starts):
                values = token_losses.double().cpu().numpy()
                losses = [float(f"{value:.6g}") for value in np.add.reduceat(values, starts) / counts]
            records += [list(record) for record in zip(numbers[starts].tolist(), losses, counts.tolist(), strict=True)]
        return records

    def step_loss(self) -> float:
        """Return the loss of the current step."""
        return float(np.sum([loss.double().cpu().numpy() for loss, _, _ in self.micro_batches]))

    def end_step(self, step: int, grad_norm: float, learning_rate: float) -> None:
        """Finish the record of the current step."""
        record = {
            "step": step, "loss": self.step_loss(), "grad_norm": grad_norm, "learning_rate": learning_rate,
            "rows": self.step_rows(),
        }  # fmt: skip
        self.lines.append(json.dumps(record))
        self.micro_batches.clear()

    def write(self, folder: Path) -> None:
        """Write the records of the complete steps to ledger.jsonl in `folder`."""
        write_text(folder / LEDGER, "".join(line + "\n" for line in self.lines))

    def read(self, folder: Path) -> None:
        """Replace the records by those in ledger.jsonl in `folder`."""
        self.lines = (folder / LEDGER).read_text(encoding="utf-8").splitlines()
        self.micro_batches.clear()


def worst_rows(records: list[list[Any]], count: int) -> list[list[Any]]:
    """Return up to `count` records of rows, those with the highest losses first. NaN counts as the highest loss.

    Rows with an unknown loss are left out.
    """
    known = [record for record in records if record[1] is not None]
    return sorted(known, key=lambda record: (-record[1] if record[1] == record[1] else -np.inf, record[0]))[:count]


def row_names(rows_file: Path, rows: list[int]) -> list[str]:
    """Return the file and the place of each row, such as `train.jsonl, line 3`. `rows_file` is rows.arrow."""
    from recipe.tokens.packing import read_sequences

    facts = read_sequences(rows_file)
    return [f"{facts[row]['file']}, {facts[row]['place']}" for row in rows]


def row_texts(sequences: Any, rows: list[int], tokenizer: Any) -> list[str]:
    """Return the end of the prompt and the start of the completion of each row, on one line.

    `sequences` are the training sequences, as read by `read_sequences`.
    """
    column = sequences.data.table["rows"].combine_chunks()
    numbers, ends = column.flatten().to_numpy(), column.offsets.to_numpy()[1:] - column.offsets[0].as_py()
    place_of = {row: place for place, row in enumerate(numbers.tolist())}
    texts = []
    for row in rows:
        number = int(np.searchsorted(ends, place_of[row], side="right"))
        sequence = sequences[number]
        lengths = np.asarray(sequence["seq_lengths"], dtype=np.int64)
        index = place_of[row] - (int(ends[number - 1]) if number else 0)
        part = slice(int(lengths[:index].sum()), int(lengths[: index + 1].sum()))
        ids, mask = sequence["input_ids"][part], np.asarray(sequence["completion_mask"][part], dtype=bool)
        first = int(mask[1:].argmax()) + 1
        prompt, completion = (" ".join(tokenizer.decode(half).split()) for half in (ids[:first], ids[first:]))
        start = prompt if len(prompt) <= SHOWN_CHARS else "…" + prompt[-SHOWN_CHARS:]
        texts.append(f"{start} → {shorten(completion, SHOWN_CHARS)}")
    return texts
