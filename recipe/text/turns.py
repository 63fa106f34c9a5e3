"""What a row becomes: turns of a prompt, which the model reads, and a completion, which it is trained to answer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Turn:
    """A prompt and the completion that follows it. Special tokens in a chat's prompt are meant as such.

    `end` is the special token that ends the completion; None is the tokenizer's end token.
    """

    prompt: str
    completion: str
    end: str | None = None
