"""Defines what a template makes of a row: turns for training, and a sample for the data analysis."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple


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


@dataclass(frozen=True)
class Conversion:
    """The turns of a row, and the parts of its messages that the template does not use, as {name: value}."""

    turns: list[Turn]
    unused: dict[str, Any] = field(default_factory=dict)


class Sample(NamedTuple):
    """The parts of a row that the data analysis uses: the question, the answer, and the form (such as `with input`)."""

    question: str
    answer: str
    form: str
