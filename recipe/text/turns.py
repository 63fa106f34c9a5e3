"""Defines the units into which a row is converted: turns for training, and samples for the data analysis."""

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Turn:
    """A prompt, which the model reads, and a completion, which the model is trained to produce.

    If special tokens are written out in the prompt of a chat, they are encoded as special tokens, not as plain text.
    `end` is the special token that ends the completion. If `end` is None, the completion ends with the tokenizer's end
    token (eos_token).
    """

    prompt: str
    completion: str
    end: str | None = None


class Sample(NamedTuple):
    """The parts of a row that the data analysis uses: the question, the answer, and the form (such as `with input`)."""

    question: str
    answer: str
    form: str
