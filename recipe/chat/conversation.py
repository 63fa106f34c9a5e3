"""Keeps a conversation, and turns it into the row from which the training's template makes a prompt.

conversation = Conversation(remembers=True)
row = conversation.row("What is 12 + 30?")       # with all earlier messages
conversation.add("What is 12 + 30?", "42")
conversation.save(Path("chat.jsonl"))            # a row on which a recipe can train
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Messages = list[dict[str, str]]


@dataclass
class Conversation:
    """The messages so far.

    A model that was trained on chats `remembers`: its prompts contain the earlier messages. The prompts of other models
    are single instructions, or an instruction and an input in the form `instruction | input`.
    """

    remembers: bool
    system: str | None = None
    messages: Messages = field(default_factory=list)

    def row(self, text: str) -> dict[str, Any]:
        """Return the row for the answer to `text`, with the keys of every template."""
        if self.remembers:
            return {"messages": [*self._system(), *self.messages, {"role": "user", "content": text}]}
        instruction, _, given = (part.strip() for part in text.partition(" | "))
        return {"instruction": instruction, "input": given, "text": text, "prompt": text}

    def add(self, text: str, answer: str) -> None:
        """Add a message and its answer."""
        self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]

    def reset(self) -> None:
        """Forget all messages except the system message."""
        self.messages = []

    def save(self, path: Path) -> int:
        """Append the conversation to a JSON Lines file, as one row with `messages`. Return the number of messages."""
        messages = [*self._system(), *self.messages]
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
        return len(messages)

    def _system(self) -> Messages:
        return [] if self.system is None else [{"role": "system", "content": self.system}]
