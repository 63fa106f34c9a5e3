"""Reads rows in batches, tokenizes them, and assigns each row to a split.

rows = tokenize_rows(params, files, tokenizer, template, chat, progress)
rows.splits["train"].lengths, rows.answers, rows.bad
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipe.core.errors import DataError
from recipe.core.services import Progress
from recipe.prepare.examples import Example, Splitter, read_examples, report_bad_rows
from recipe.prepare.forms import Forms
from recipe.prepare.params import SequenceParams
from recipe.prepare.tiktoken_encoder import rank_encoder
from recipe.prepare.token_store import SplitTokens, check_overlong
from recipe.prepare.tokenize import Tokens, tokenize, tokenize_chats
from recipe.prepare.unused import Unused
from recipe.text.chat_templates import ChatTemplate
from recipe.text.rows import BadRow
from recipe.text.templates import Template
from recipe.tokens.packing import batched

BATCH_ROWS = 2000
GC_THRESHOLD = 200_000  # number of new objects between two runs of the garbage collector
MIN_ROWS_FOR_RANKS = 2000  # with fewer rows, building the faster encoder takes more time than the encoder saves


@contextmanager
def infrequent_gc() -> Iterator[None]:
    """Run the garbage collector rarely. Otherwise, repeated scans of all modules and rows take a fifth of the run time.

    The collector is needed only to free reference cycles. Rows contain no reference cycles, so they are freed without
    it.
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

    `splits` contains the tokens of each split: `train`, `validation` and, if there are general rows, `general`.
    `answers` contains, for each split but `train`, the prompt, the completion and the category of each row. `bad`
    contains the malformed rows. `num_read` is the number of rows read, without the valid general rows. `unused` lists
    the columns and message keys that the template does not use (see unused.py). `forms` contains an example row for
    each form (see forms.py).
    """

    splits: dict[str, SplitTokens]
    answers: dict[str, list[dict[str, str]]] = field(default_factory=lambda: {"validation": [], "general": []})
    bad: list[BadRow] = field(default_factory=list)
    num_read: int = 0
    unused: dict[str, dict[str, Any]] = field(default_factory=dict)
    forms: list[dict[str, Any]] = field(default_factory=list)

    def add(self, split: str, example: Example, tokens: Tokens) -> bool:
        """Store the tokens of an example, and return whether the example is kept.

        For a kept example of `validation` or `general`, also store the prompt and the last completion.
        """
        is_kept = self.splits[split].add(example, tokens)
        if is_kept and split in self.answers:
            self.answers[split].append({
                "prompt": example.prompt, "completion": example.turns[-1].completion, "category": example.category,
            })  # fmt: skip
        return is_kept


def tokenize_rows(
    params: SequenceParams, files: dict[str, dict[str, Path]], tokenizer: Any, template: Template,
    chat: ChatTemplate | None, progress: Progress,
) -> TokenizedRows:  # fmt: skip
    """Tokenize the rows of `files`, {split: {name: path}}. Without validation files, rows are split by their prompts.

    Raises DataError if a prompt of another split is in the training rows, or if a split is empty. Depending on
    `params`, DataError is also raised if a row is malformed or too long.
    """
    num_ids = 1 + max(tokenizer.get_vocab().values())  # larger than the number of tokens if the ids have gaps
    order = ("general", "validation", "train") if files.get("general") else ("validation", "train")
    rows = TokenizedRows(
        {name: SplitTokens(params.max_length, params.on_overlong, num_ids) for name in reversed(order)}
    )
    bad: dict[str, list[BadRow]] = {name: [] for name in reversed(order)}
    splitter = Splitter(params.validation_fraction, validation_is_given=bool(files["validation"]))
    plain, looked_for_ranks = None, False
    unused, forms = (
        Unused(params.template, params.columns, chat.source if chat else None),
        Forms(tokenizer, params.max_length),
    )
    with infrequent_gc():
        for split in order:  # the splitter requires this order
            source = read_examples(files[split], template, params.columns, unused) if files[split] else iter(())
            for batch in batched(progress(source, f"tokenizing {split}"), BATCH_ROWS):
                bad[split] += [row for row in batch if isinstance(row, BadRow)]
                if params.on_bad_row == "error" and any(bad.values()):
                    continue  # collect the remaining bad rows for the error message, but tokenize no more rows
                examples = [row for row in batch if isinstance(row, Example)]
                turns = [example.turns for example in examples]
                if chat:
                    tokenized: Iterator[Tokens | str] = tokenize_chats(tokenizer, turns, loss_on=params.loss_on)
                else:
                    if not looked_for_ranks and len(batch) >= MIN_ROWS_FOR_RANKS:
                        plain, looked_for_ranks = rank_encoder(tokenizer), True
                    tokenized = tokenize(turns, tokenizer, loss_on=params.loss_on, plain=plain)
                for example, tokens in zip(examples, tokenized, strict=True):
                    if not isinstance(tokens, str) and not tokens.completion_mask[1:].any():
                        tokens = "no token of the row is in the loss"
                    if isinstance(tokens, str):
                        bad[split].append(BadRow(example.file, example.place, tokens, example.text))
                    elif rows.add(splitter.assign(split, example), example, tokens) and split != "general":
                        forms.add(example, tokens)
    rows.unused, rows.forms = unused.summary(), forms.summary()
    rows.bad = [row for found in bad.values() for row in found]
    if rows.bad and params.on_bad_row == "error":
        raise DataError(report_bad_rows(rows.bad) + "\nFix these rows, or set sequence.on_bad_row to drop.")
    splitter.check()
    rows.num_read = sum(splitter.count.values()) + len(rows.bad)
    check_overlong([row for split in rows.splits.values() for row in split.too_long], params.max_length)
    if not all(split.num_tokens for split in rows.splits.values()):
        raise DataError("all rows of a split are longer than sequence.max_length and were dropped. Raise the limit.")
    return rows
