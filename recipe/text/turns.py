"""Defines what a template creates from a row: turns for training, and a sample for the data analysis."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Span(NamedTuple):
    """The part of a text that a message covers: the message's role, and the range of the characters."""

    role: str
    start: int
    stop: int


@dataclass(frozen=True)
class Turn:
    """A prompt, which the model reads, and a completion, which the model is trained to produce.

    If special tokens are written out in the prompt of a chat, they are encoded as special tokens, not as plain text.
    `end` is the special token that ends the completion. If `end` is None, the completion ends with the tokenizer's end
    token (eos_token). `spans` lists the messages in the prompt of a chat, in order.
    """

    prompt: str
    completion: str
    end: str | None = None
    spans: tuple[Span, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Conversion:
    """The turns of a row, its form (see Sample), and the parts of its messages that the template does not use, {name:
    value}.
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
    """Return the prompts, the completions and the end tokens of turns as one text."""
    return "".join(turn.prompt + turn.completion + (turn.end or "") for turn in turns)
