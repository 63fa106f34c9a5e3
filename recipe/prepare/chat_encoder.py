"""Encodes chats so that training uses the same tokens that the model reads and writes during inference.

    for chat in encode_chats(tokenizer, rows): ...    # rows contains the turns of each chat; see EncodedChat

A chat is tokenized as one text. The tokens of each prompt (the text up to an answer) must be a prefix of the chat's
tokens, because a server encodes the prompt alone. They are not a prefix if a token spans the boundary between prompt
and answer. For example, the prompt `Assistant: ` and the answer `Yes` share the token ` Yes`. Such an answer is encoded
separately from its prompt. `num_split` is the number of these answers.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from recipe.text.turns import Turn, text_of
from recipe.tokens.tokenizer import encode, encode_continuations

# The tokenizer options for encoding text rendered by a chat template.
OPTIONS = {
    "add_special_tokens": False, "split_special_tokens": False, "return_attention_mask": False, "verbose": False,
}  # fmt: skip
DECODING = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}


class EncodedTurn(NamedTuple):
    """The ids (uint32) of a turn's prompt, and of the turn's answer including its end token.

    `prompt_starts` contains, for each token of the prompt, the index of the character at which the token begins.
    """

    prompt: np.ndarray
    prompt_starts: np.ndarray
    answer: np.ndarray


class EncodedChat(NamedTuple):
    """The encoded turns of a chat, and the number of answers that were encoded separately."""

    turns: list[EncodedTurn]
    num_split: int


def encode_chats(tokenizer: Any, rows: list[list[Turn]]) -> Iterator[EncodedChat | str]:
    """Yield each chat's EncodedChat, or the reason why the chat cannot be encoded.

    The tokenizer must be implemented by the `tokenizers` library, which first splits a text at its special tokens, and
    then encodes the parts independently. Each prompt is therefore encoded together with only the end token of the
    previous answer. The ids are the same as if the whole chat up to the end of the prompt were encoded.
    """
    if not rows:
        return
    encoded = tokenizer([text_of(row) for row in rows], return_offsets_mapping=True, **OPTIONS)
    prompt_texts = [_context(row, number) + turn.prompt for row in rows for number, turn in enumerate(row)]
    prompts = iter(encode(tokenizer, prompt_texts, special_tokens=True))
    for row, ids, offsets in zip(rows, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        row_prompts = [np.array(next(prompts), np.uint32) for _ in row]
        yield _encode_row(tokenizer, row, np.array(ids, np.uint32), np.array(offsets).reshape(-1, 2), row_prompts)


def _encode_row(
    tokenizer: Any, row: list[Turn], ids: np.ndarray, offsets: np.ndarray, prompts: list[np.ndarray]
) -> EncodedChat | str:
    """Divide the ids of a chat into prompts and answers. `prompts` contains the ids of each context and prompt."""
    turns, num_split, start, char = [], 0, 0, 0
    for number, (turn, prompt) in enumerate(zip(row, prompts, strict=True)):
        end = turn.end or ""
        stop_char = char + len(turn.prompt) + len(turn.completion) + len(end)
        stop = int(np.searchsorted(offsets[:, 1], stop_char)) + 1  # one past the first token that reaches stop_char
        if stop > len(ids) or ids[stop - 1] != tokenizer.convert_tokens_to_ids(end):
            return f"the tokenizer does not encode the token {end} that ends answer {number + 1} as one token"
        first = start - 1 if number else start  # where the context begins
        border = first + len(prompt)
        if border < stop and np.array_equal(ids[first:border], prompt):
            starts = offsets[start:border, 0] - char
            turns.append(EncodedTurn(ids[start:border], starts, ids[border:stop]))
        else:
            split = _split(tokenizer, _context(row, number), turn)
            if isinstance(split, str):
                return f"{split} (answer {number + 1})"
            turns.append(split)
            num_split += 1
        start, char = stop, stop_char
    return EncodedChat(turns, num_split)


def _split(tokenizer: Any, context: str, turn: Turn) -> EncodedTurn | str:
    """Encode a prompt and its answer separately. Return an error message if the ids decode to a different text."""
    answer_text = turn.completion + (turn.end or "")
    [answer] = encode_continuations(tokenizer, [answer_text], special_tokens=True)
    encoded = tokenizer(context + turn.prompt, return_offsets_mapping=True, **OPTIONS)
    prompt, starts = encoded["input_ids"], np.array(encoded["offset_mapping"]).reshape(-1, 2)[:, 0] - len(context)
    [whole] = encode(tokenizer, [context + turn.prompt + answer_text], special_tokens=True)
    if tokenizer.decode(prompt + answer, **DECODING) != tokenizer.decode(whole, **DECODING):
        return "the tokenizer cannot encode the prompt and the completion separately without changing the text"
    num_context = int(bool(context))
    return EncodedTurn(np.array(prompt[num_context:], np.uint32), starts[num_context:], np.array(answer, np.uint32))


def _context(row: list[Turn], number: int) -> str:
    """Return the end token of the previous turn's answer, or an empty string for the first turn."""
    return (row[number - 1].end or "") if number else ""
