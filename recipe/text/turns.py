"""Defines what a template creates from a row: turns for training and a sample for the data analysis."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Span(NamedTuple):
    """The role of a message, and the range of characters that the message covers in a text."""

    role: str
    start: int
    stop: int


@dataclass(frozen=True)
class Turn:
    """A prompt, which the model reads, and a completion, which the model is trained to produce.

    Special tokens that are written out in a chat's prompt are encoded as special tokens, not as plain text.
    `end` is the special token that ends the completion. If `end` is None, the completion ends with the tokenizer's end
    token (eos_token). `spans` lists the spans of the messages in a chat's prompt, in order.
    """

    prompt: str
    completion: str
    end: str | None = None
    spans: tuple[Span, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Conversion:
    """The turns of a row, its form (see Sample), and the parts of its messages that the template does not use.

    `unused` contains these parts as {name: value}.
    """

    turns: list[Turn]
    form: str
    unused: dict[str, Any] = field(default_factory=dict)


class Sample(NamedTuple):
    """The parts of a row that the data analysis uses: the question, the answer, and the form (such as `with input`)."""

    question: str
    answer: str
    form: str


def text_of(turns: list[Turn]) -> str:
    """Join the prompts, completions and end tokens of the turns into one text."""
    return "".join(turn.prompt + turn.completion + (turn.end or "") for turn in turns)
