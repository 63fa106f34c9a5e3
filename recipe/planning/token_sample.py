"""Estimates the number of tokens in local rows, by tokenizing a sample of the rows exactly as prepare does.

    local_tokens(params, files, paths)    # 118_000

Up to NUM_ROWS rows, the number is exact. With more rows, it is the average of a random sample times the number of rows.
"""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from recipe.core.hub_cache import HUB
from recipe.core.paths import Paths
from recipe.prepare.params import SequenceParams
from recipe.prepare.tokenize import Tokens, tokenize, tokenize_chats
from recipe.text.chat_templates import ChatTemplate
from recipe.text.readers import read_rows
from recipe.text.rows import BadRow, Row
from recipe.text.templates import TEMPLATES, make_template
from recipe.tokens.tokenizer import load_tokenizer

NUM_ROWS = 1000  # number of rows to tokenize, which takes about a second
SEED = 0


def local_tokens(params: dict[str, Any], files: Sequence[Path], paths: Paths) -> int | None:
    """Return the result of `sample_tokens`, or None if the tokenizer of a model on the Hub has not been fetched.

    Raises DataError if the tokenizer or a file can't be read, and ParamsError if the chat template can't be used.
    """
    folder, source = paths.base / "tokenizer", params["model"].source
    if not folder.is_dir():
        if source == HUB:
            return None
        folder = paths.folder / source
    return sample_tokens(params["sequence"], files, load_tokenizer(folder))


def sample_tokens(params: SequenceParams, files: Sequence[Path], tokenizer: Any) -> int:
    """Return the estimated number of tokens that prepare keeps from all rows, in both splits.

    Raises DataError if a file can't be read, and ParamsError if the chat template can't be used.
    """
    rows, num_rows = _sample(files)
    chat = ChatTemplate(tokenizer, params.chat_template) if TEMPLATES[params.template].USES_CHAT_TEMPLATE else None
    template = make_template(params.template, params.columns, chat)
    converted = [template.convert(row) for row in rows]
    turns = [conversion.turns for conversion in converted if not isinstance(conversion, BadRow)]
    tokenized: Iterator[Tokens | str]
    if chat:
        tokenized = tokenize_chats(tokenizer, turns, loss_on=params.loss_on)
    else:
        tokenized = tokenize(turns, tokenizer, loss_on=params.loss_on)
    lengths = [_kept(tokens, params) for tokens in tokenized if not isinstance(tokens, str)]
    return int(sum(lengths) * num_rows / max(len(rows), 1))


def _sample(files: Sequence[Path]) -> tuple[list[Row], int]:
    """Return up to NUM_ROWS readable rows, each with the same probability, and the number of readable rows."""
    rows: list[Row] = []
    num_rows, generator = 0, random.Random(SEED)
    for row in (row for file in files for row in read_rows(file)):
        if isinstance(row, BadRow):
            continue
        num_rows += 1
        if len(rows) < NUM_ROWS:
            rows.append(row)
        elif (place := generator.randrange(num_rows)) < NUM_ROWS:
            rows[place] = row
    return rows, num_rows


def _kept(tokens: Tokens, params: SequenceParams) -> int:
    """Return how many tokens of a row prepare keeps."""
    length = len(tokens.ids)
    if length <= params.max_length or params.on_overlong == "error":
        return length
    has_answer = tokens.completion_mask[1 : params.max_length].any()
    return params.max_length if params.on_overlong == "truncate" and has_answer else 0
