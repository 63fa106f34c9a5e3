"""A turn: a prompt, which the model reads, and a completion, which the model is trained to produce."""

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Turn:
    """A prompt and the completion that follows it.

    Special tokens written out in the prompt of a chat are encoded as special tokens, not as plain text. `end` is the
    special token that ends the completion; None means the tokenizer's end token (eos_token).
    """

    prompt: str
    completion: str
    end: str | None = None


class Sample(NamedTuple):
    """A row as the data analysis uses it: its question, its answer, and its form (such as `with input`)."""

    question: str
    answer: str
    form: str
