"""Encodes chats so that the tokens in training are the tokens that the model reads and writes when it answers.

    encoder = ChatEncoder(tokenizer)
    for chat in encoder.encode(rows): ...    # rows contains the turns of each chat; see EncodedChat

The tokens of a chat are the tokens of its whole text. The tokens of a prompt (the text up to an answer) must be the
first of these tokens, because a server encodes the prompt alone. This fails if a token of the whole text crosses the
border between prompt and answer. For example, the prompt `Assistant: ` and the answer `Yes` share the token ` Yes`.
Such an answer is encoded separately, and `num_split` counts it.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from recipe.text.turns import Turn, text_of
from recipe.tokens.tokenizer import encode, encode_continuations

# The options with which a tokenizer encodes text that a chat template rendered.
OPTIONS = {
    "add_special_tokens": False, "split_special_tokens": False, "return_attention_mask": False, "verbose": False,
}  # fmt: skip


class EncodedTurn(NamedTuple):
    """The ids of a turn's prompt and of its answer with the end token, all uint32.

    `prompt_starts` contains the index of the character in the prompt at which each token begins.
    """

    prompt: np.ndarray
    prompt_starts: np.ndarray
    answer: np.ndarray


class EncodedChat(NamedTuple):
    """The encoded turns of a chat, and the number of answers that were encoded separately."""

    turns: list[EncodedTurn]
    num_split: int


class ChatEncoder:
    """Encodes the turns of chats.

    The `tokenizers` library first divides a text at its special tokens, and encodes the parts independently. A prompt
    is therefore encoded from the end token of the previous answer on, which gives the same ids as encoding the chat up
    to the end of the prompt.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Create an encoder for a tokenizer that the `tokenizers` library implements."""
        self.tokenizer = tokenizer

    def encode(self, rows: list[list[Turn]]) -> Iterator[EncodedChat | str]:
        """Yield each chat's EncodedChat, or the reason why the chat cannot be encoded."""
        if not rows:
            return
        encoded = self.tokenizer([text_of(row) for row in rows], return_offsets_mapping=True, **OPTIONS)
        prompt_texts = [_context(row, number) + turn.prompt for row in rows for number, turn in enumerate(row)]
        prompts = iter(encode(self.tokenizer, prompt_texts, special_tokens=True))
        for row, ids, offsets in zip(rows, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            row_prompts = [np.array(next(prompts), np.uint32) for _ in row]
            yield self._encode_row(row, np.array(ids, np.uint32), np.array(offsets).reshape(-1, 2), row_prompts)

    def _encode_row(
        self, row: list[Turn], ids: np.ndarray, offsets: np.ndarray, prompts: list[np.ndarray]
    ) -> EncodedChat | str:
        """Divide the ids of a chat into prompts and answers. `prompts` contains the ids of contexts and prompts."""
        turns, num_split, start, char = [], 0, 0, 0
        for number, (turn, prompt) in enumerate(zip(row, prompts, strict=True)):
            end = turn.end or ""
            stop_char = char + len(turn.prompt) + len(turn.completion) + len(end)
            stop = int(np.searchsorted(offsets[:, 1], stop_char)) + 1  # the first token that includes this character
            if stop > len(ids) or ids[stop - 1] != self.tokenizer.convert_tokens_to_ids(end):
                return f"the tokenizer does not encode the token {end} that ends answer {number + 1} as one token"
            first = start - 1 if number else start  # where the context begins
            border = first + len(prompt)
            if border < stop and np.array_equal(ids[first:border], prompt):
                starts = offsets[start:border, 0] - char
                turns.append(EncodedTurn(ids[start:border], starts, ids[border:stop]))
            else:
                split = self._split(_context(row, number), turn)
                if isinstance(split, str):
                    return f"{split} of answer {number + 1}"
                turns.append(split)
                num_split += 1
            start, char = stop, stop_char
        return EncodedChat(turns, num_split)

    def _split(self, context: str, turn: Turn) -> EncodedTurn | str:
        """Encode a prompt and its answer separately. Return an error message if decoding changes the text."""
        answer_text = turn.completion + (turn.end or "")
        [answer] = encode_continuations(self.tokenizer, [answer_text], special_tokens=True)
        encoded = self.tokenizer(context + turn.prompt, return_offsets_mapping=True, **OPTIONS)
        prompt, starts = encoded["input_ids"], np.array(encoded["offset_mapping"]).reshape(-1, 2)[:, 0] - len(context)
        [whole] = encode(self.tokenizer, [context + turn.prompt + answer_text], special_tokens=True)
        if self._decode(prompt + answer) != self._decode(whole):
            return "the tokenizer changes the text if a token ends at the start"
        num_context = int(bool(context))
        return EncodedTurn(np.array(prompt[num_context:], np.uint32), starts[num_context:], np.array(answer, np.uint32))

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _context(row: list[Turn], number: int) -> str:
    """Return the end token of the answer before a turn, or no text for the first turn."""
    return (row[number - 1].end or "") if number else ""
