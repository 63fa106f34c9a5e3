"""Reads rows in batches, encodes their turns, marks the tokens in the loss, and assigns each row to a split.

rows = tokenize_rows(params, files, tokenizer, template, chat, progress)
rows.splits["train"].lengths, rows.answers, rows.bad
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from recipe.core.errors import DataError
from recipe.core.services import Progress
from recipe.prepare.examples import Example, Splitter, read_examples, report_bad_rows
from recipe.prepare.params import SequenceParams
from recipe.prepare.tiktoken_encoder import Encode, rank_encoder
from recipe.prepare.token_store import SplitTokens, check_overlong
from recipe.prepare.unused import Unused
from recipe.text.chat_templates import ChatTemplate
from recipe.text.rows import BadRow
from recipe.text.templates import Template
from recipe.text.turns import Turn
from recipe.tokens.packing import batched
from recipe.tokens.tokenizer import encode, leading_ids

BATCH_ROWS = 2000
GC_THRESHOLD = 200_000  # number of new objects between two runs of the garbage collector
MIN_ROWS_FOR_RANKS = 2000  # with fewer rows, building the faster encoder takes more time than the encoder saves


def tokenize(
    turns: list[list[Turn]], tokenizer: Any, *, loss_on: str, chat: bool = False, plain: Encode | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the input_ids (uint32) and the completion mask (bool) of each row.

    The input_ids contain the prompt, the completion and the end token of each turn, and, unless `chat` is true, begin
    with the tokenizer's leading ids. The mask includes the end tokens. The prompt and the completion are encoded
    separately, as during inference. `plain` is a faster encoder for texts in which special tokens are plain text.
    """
    if not turns:
        return

    def encode_texts(texts: list[str], *, special_tokens: bool = False) -> Iterator[np.ndarray]:
        if plain and not special_tokens:
            return iter(plain(texts))
        return (np.array(ids, np.uint32) for ids in encode(tokenizer, texts, special_tokens=special_tokens))

    prompts = encode_texts([turn.prompt for row in turns for turn in row], special_tokens=chat)
    completions = encode_texts([turn.completion for row in turns for turn in row])
    leading = np.array([] if chat else leading_ids(tokenizer), np.uint32)
    ends = {end: np.array([_end_id(tokenizer, end)], np.uint32) for end in {turn.end for row in turns for turn in row}}
    parts, in_mask, sizes = [], [], []
    for row in turns:
        parts.append(leading)
        for turn in row:
            parts += [next(prompts), next(completions), ends[turn.end]]
        in_mask += [loss_on == "all", *[loss_on == "all", True, True] * len(row)]
        sizes.append(1 + 3 * len(row))
    # Create a single array for all rows, and yield views of this array. Creating an array for each row would take as
    # long as encoding the text.
    lengths = [len(part) for part in parts]
    ids, completion_mask = np.concatenate(parts), np.repeat(in_mask, lengths)
    borders = np.cumsum([0, *lengths])[np.cumsum([0, *sizes])].tolist()
    for start, stop in pairwise(borders):
        yield ids[start:stop], completion_mask[start:stop]


def _end_id(tokenizer: Any, end: str | None) -> int:
    return tokenizer.eos_token_id if end is None else tokenizer.convert_tokens_to_ids(end)


@contextmanager
def infrequent_gc() -> Iterator[None]:
    """Run the garbage collector rarely. Otherwise, repeated scans of all modules and rows take a fifth of the run time.

    The collector is needed only to free reference cycles. Rows contain no cycles, so they are freed without it.
    """
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


@dataclass
class TokenizedRows:
    """The result of tokenize_rows.

    `splits` contains the tokens of each split. `answers` contains the prompt, the completion and the category of each
    validation row. `bad` contains the malformed rows. `num_read` is the number of rows read. `unused` lists the columns
    and message keys that are not used (see unused.py).
    """

    splits: dict[str, SplitTokens]
    answers: list[dict[str, str]] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    num_read: int = 0
    unused: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, split: str, example: Example, ids: np.ndarray, completion_mask: np.ndarray) -> None:
        """Store the tokens of an example. For a kept validation example, also store the prompt and last completion."""
        if self.splits[split].add(example, ids, completion_mask) and split == "validation":
            completion = example.turns[-1].completion
            self.answers.append({"prompt": example.prompt, "completion": completion, "category": example.category})


def tokenize_rows(
    params: SequenceParams, files: dict[str, dict[str, Path]], tokenizer: Any, template: Template,
    chat: ChatTemplate | None, progress: Progress,
) -> TokenizedRows:  # fmt: skip
    """Tokenize the rows of `files`, {split: {name: path}}. Without validation files, rows are split by their prompts.

    Raises DataError if a prompt is in both splits or a split is empty. Depending on `params`, a malformed row or a row
    that is too long also raises DataError.
    """
    num_ids = 1 + max(tokenizer.get_vocab().values())  # larger than the number of tokens if the ids have gaps
    rows = TokenizedRows(
        {name: SplitTokens(params.max_length, params.on_overlong, num_ids) for name in ("train", "validation")}
    )
    bad: dict[str, list[BadRow]] = {"train": [], "validation": []}
    splitter = Splitter(params.validation_fraction, validation_is_given=bool(files["validation"]))
    plain, looked_for_ranks = None, False
    unused = Unused(params.template, params.columns)
    with infrequent_gc():
        for split in ("validation", "train"):  # the splitter requires this order
            source = read_examples(files[split], template, params.columns, unused) if files[split] else iter(())
            for batch in batched(progress(source, f"tokenizing {split}"), BATCH_ROWS):
                bad[split] += [row for row in batch if isinstance(row, BadRow)]
                if params.on_bad_row == "error" and (bad["train"] or bad["validation"]):
                    continue  # collect the remaining bad rows for the error message, but tokenize no more rows
                examples = [row for row in batch if isinstance(row, Example)]
                if not looked_for_ranks and len(batch) >= MIN_ROWS_FOR_RANKS:
                    plain, looked_for_ranks = rank_encoder(tokenizer), True
                turns = [example.turns for example in examples]
                tokenized = tokenize(turns, tokenizer, loss_on=params.loss_on, chat=chat is not None, plain=plain)
                for example, tokens in zip(examples, tokenized, strict=True):
                    rows.add(splitter.assign(split, example), example, *tokens)
    rows.unused = unused.summary()
    rows.bad = bad["train"] + bad["validation"]
    if rows.bad and params.on_bad_row == "error":
        raise DataError(report_bad_rows(rows.bad) + "\nFix these rows, or set sequence.on_bad_row to drop.")
    splitter.check()
    rows.num_read = sum(splitter.count.values()) + len(rows.bad)
    train, validation = rows.splits["train"], rows.splits["validation"]
    check_overlong(train.too_long + validation.too_long, params.max_length)
    if not train.num_tokens or not validation.num_tokens:
        raise DataError("all rows of a split are longer than sequence.max_length and were dropped. Raise the limit.")
    return rows
