"""Turns: a prompt, which the model reads, and a completion, which it is trained to produce."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Turn:
    """A prompt and the completion that follows it. In a chat's prompt, special tokens are encoded as such.

    `end` is the special token that ends the completion; None means the tokenizer's end token.
    """

    prompt: str
    completion: str
    end: str | None = None
