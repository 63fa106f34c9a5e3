"""Encodes the turns of rows, and records each token's role and whether the token is in the loss.

for ids, completion_mask, roles, num_split in tokenize(turns, tokenizer, loss_on="completion"): ...
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from recipe.prepare.chat_encoder import encode_chats
from recipe.prepare.tiktoken_encoder import Encode
from recipe.text.messages import ROLES as CHAT_ROLES
from recipe.text.turns import Turn
from recipe.tokens.tokenizer import encode, encode_continuations, leading_ids

# The roles of tokens: `template` for text that a template adds, CHAT_ROLES for the messages of a chat, and `prompt` and
# `completion` for rows without messages.
ROLES = ("template", *CHAT_ROLES, "prompt", "completion")
ROLE_IDS = {role: number for number, role in enumerate(ROLES)}
BORDER_CHARS = 16  # see _crosses_border


class Tokens(NamedTuple):
    """The tokens of a row: their ids (uint32), whether they are in the loss (bool), and their roles (uint8).

    Each role is an index into ROLES. `num_split` is the number of completions that begin inside a token of the whole
    text, and are therefore encoded separately.
    """

    ids: np.ndarray
    completion_mask: np.ndarray
    roles: np.ndarray
    num_split: int


def tokenize(turns: list[list[Turn]], tokenizer: Any, *, loss_on: str, plain: Encode | None = None) -> Iterator[Tokens]:
    """Yield the Tokens of each row. Chats are tokenized by `tokenize_chats`.

    A row's tokens are the tokenizer's leading ids, followed by the prompt, the completion and the end token of each
    turn. The mask includes the end tokens. The prompt and the completion are encoded separately, as during inference.
    `plain` is a faster encoder that treats special tokens as plain text.
    """
    if not turns:
        return
    prompt_texts = [turn.prompt for row in turns for turn in row]
    texts = [turn.completion for row in turns for turn in row]
    if plain:
        prompts, completions = iter(plain(prompt_texts)), iter(plain(texts))
    else:
        prompts = map(_array, encode(tokenizer, prompt_texts))
        completions = map(_array, _encode_completions(tokenizer, prompt_texts, texts))
    split = iter(_crosses_border(tokenizer, prompt_texts, texts, plain))
    leading, end = _array(leading_ids(tokenizer)), _array([tokenizer.eos_token_id])
    parts, sizes, num_split = [], [], []
    for row in turns:
        parts.append(leading)
        for _ in row:
            parts += [next(prompts), next(completions), end]
        sizes.append(1 + 3 * len(row))
        num_split.append(sum(next(split) for _ in row))
    in_mask = [part for row in turns for part in (loss_on == "all", *[loss_on == "all", True, True] * len(row))]
    template, *turn_roles = (ROLE_IDS[role] for role in ("template", "prompt", "completion", "completion"))
    roles = [role for row in turns for role in (template, *turn_roles * len(row))]
    # Create a single array for all rows, and yield views of this array. Creating an array for each row would take as
    # long as encoding the text.
    lengths = [len(part) for part in parts]
    ids, mask = np.concatenate(parts), np.repeat(in_mask, lengths)
    token_roles = np.repeat(np.array(roles, np.uint8), lengths)
    borders = np.cumsum([0, *lengths])[np.cumsum([0, *sizes])].tolist()
    for (start, stop), number in zip(pairwise(borders), num_split, strict=True):
        yield Tokens(ids[start:stop], mask[start:stop], token_roles[start:stop], number)


def tokenize_chats(tokenizer: Any, rows: list[list[Turn]], *, loss_on: str) -> Iterator[Tokens | str]:
    """Yield the Tokens of each chat, or the reason why the chat cannot be encoded. The mask includes the end tokens."""
    for row, chat in zip(rows, encode_chats(tokenizer, rows), strict=True):
        if isinstance(chat, str):
            yield chat
            continue
        parts, roles, in_mask = [], [], []
        for turn, encoded in zip(row, chat.turns, strict=True):
            prompt_roles = np.full(len(encoded.prompt), ROLE_IDS["template"], np.uint8)
            for role, *span in turn.spans:
                start, stop = np.searchsorted(encoded.prompt_starts, span)
                prompt_roles[start:stop] = ROLE_IDS[role]
            parts += [encoded.prompt, encoded.answer]
            roles += [prompt_roles, np.full(len(encoded.answer), ROLE_IDS["assistant"], np.uint8)]
            in_mask += [loss_on == "all", True]
        mask = np.repeat(in_mask, [len(part) for part in parts])
        yield Tokens(np.concatenate(parts), mask, np.concatenate(roles), chat.num_split)


def _encode_completions(tokenizer: Any, prompts: list[str], completions: list[str]) -> list[list[int]]:
    """Encode each completion as a continuation of its prompt, unless the prompt is empty."""
    ids = encode_continuations(tokenizer, completions)
    first = [index for index, prompt in enumerate(prompts) if not prompt]
    for index, alone in zip(first, encode(tokenizer, [completions[index] for index in first]), strict=True):
        ids[index] = alone
    return ids


def _crosses_border(tokenizer: Any, prompts: list[str], completions: list[str], plain: Encode | None) -> list[bool]:
    """For each prompt and completion, return whether a token would span the boundary if both were encoded together.

    Only BORDER_CHARS characters on each side of the boundary are encoded.
    """

    def encode_texts(texts: list[str]) -> list[list[int]]:
        return [ids.tolist() for ids in plain(texts)] if plain else encode(tokenizer, texts)

    pairs = [
        (prompt[-BORDER_CHARS:], completion[:BORDER_CHARS])
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    prompt_ends = list(dict.fromkeys(end for end, _ in pairs))
    ends = dict(zip(prompt_ends, encode_texts(prompt_ends), strict=True))
    wholes = encode_texts([end + start for end, start in pairs])
    return [whole[: len(ends[end])] != ends[end] for whole, (end, _) in zip(wholes, pairs, strict=True)]


def _array(ids: list[int]) -> np.ndarray:
    return np.array(ids, np.uint32)
