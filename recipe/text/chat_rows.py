"""Templates that pass a row's messages to a chat template: lists of messages, and Alpaca's columns as a chat."""

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from recipe.core.errors import DataError
from recipe.text.alpaca import alpaca_messages
from recipe.text.chat_templates import ChatTemplate
from recipe.text.messages import Chat as Messages
from recipe.text.messages import Message, read_chat
from recipe.text.plain_templates import Alpaca, alpaca_sample, bad_row, pick, require
from recipe.text.readers import BadRow, Row
from recipe.text.turns import Sample, Turn


@dataclass(frozen=True)
class Chat:
    """Columns of messages, a system message and tools, rendered by a chat template. The assistant's messages are
    in the loss, unless they are marked as not trained.
    """

    columns: dict[str, str]
    chat: ChatTemplate | None = None  # may be None if only `sample` is called
    REQUIRED: ClassVar[tuple[str, ...]] = ("messages",)
    OPTIONAL: ClassVar[tuple[str, ...]] = ("system", "tools")
    USES_CHAT_TEMPLATE: ClassVar[bool] = True
    EXAMPLE: ClassVar[dict[str, str]] = {"instruction": "Name three colours."}
    CHARS_AROUND: ClassVar[int] = 0

    def turns(self, row: Row) -> list[Turn] | BadRow:
        """One turn per message of the assistant that is trained."""
        column = self.columns["messages"]
        if column not in row.values:
            return bad_row(row, f"the column {column!r} is missing; the row has {', '.join(map(repr, row.values))}")
        chat = self._read(row.values)
        return bad_row(row, chat) if isinstance(chat, str) else _chat_turns(self.chat, row, chat)

    def _read(self, values: dict[str, Any]) -> Messages | str:
        optional = {name: values.get(self.columns[name]) for name in self.OPTIONAL if name in self.columns}
        return read_chat(values[self.columns["messages"]], **optional)

    def prompt(self, row: dict[str, Any]) -> str:
        """The prompt for the messages so far, or for an instruction as the only message."""
        return _chat_prompt(self.chat, row)

    def sample(self, values: dict[str, Any]) -> Sample:
        """The answer is the last message; the question is all messages before it."""
        chat = self._read(values)
        assert not isinstance(chat, str), chat
        messages = chat.messages
        answers = sum(message.role == "assistant" for message in messages)
        form = f"{answers} answer{'s' if answers > 1 else ''}"
        form += ", system message" if messages[0].role == "system" else ""
        form += ", tools" if chat.tools or any(message.tool_calls for message in messages) else ""
        question = "\n".join(message.content for message in messages[:-1])
        return Sample(question, messages[-1].content or json.dumps(messages[-1].tool_calls, ensure_ascii=False), form)


@dataclass(frozen=True)
class AlpacaChat:
    """Alpaca's columns as a chat of two messages, rendered by a chat template."""

    columns: dict[str, str]
    chat: ChatTemplate | None = None  # may be None if only `sample` is called
    REQUIRED: ClassVar[tuple[str, ...]] = Alpaca.REQUIRED
    OPTIONAL: ClassVar[tuple[str, ...]] = Alpaca.OPTIONAL
    USES_CHAT_TEMPLATE: ClassVar[bool] = True
    EXAMPLE: ClassVar[dict[str, str]] = Alpaca.EXAMPLE
    CHARS_AROUND: ClassVar[int] = Alpaca.CHARS_AROUND

    def turns(self, row: Row) -> list[Turn] | BadRow:
        """A single turn."""
        picked = pick(row, self.columns, self.REQUIRED, self.OPTIONAL)
        if isinstance(picked, BadRow):
            return picked
        messages = [Message(message) for message in alpaca_messages(picked)]
        return _chat_turns(self.chat, row, Messages(messages))

    def prompt(self, row: dict[str, Any]) -> str:
        """The prompt for an instruction and its input in a single message, or for the messages so far."""
        return _chat_prompt(self.chat, row)

    def sample(self, values: dict[str, Any]) -> Sample:
        """The question is the instruction followed by the input."""
        return alpaca_sample(self.columns, values)


def _chat_turns(template: ChatTemplate | None, row: Row, chat: Messages) -> list[Turn] | BadRow:
    assert template is not None
    try:
        return template.turns(chat)
    except DataError as error:
        return bad_row(row, str(error))


def _chat_prompt(template: ChatTemplate | None, row: dict[str, Any]) -> str:
    assert template is not None
    if row.get("messages"):
        # Add an answer, because read_chat rejects chats without one.
        chat = read_chat(
            [*row["messages"], {"role": "assistant", "content": "-"}], system=row.get("system"), tools=row.get("tools")
        )
        if isinstance(chat, str):
            raise DataError(f"the input row is invalid: {chat}.")
        return template.prompt(chat.messages[:-1], chat.tools)
    require(row, "instruction")
    messages = alpaca_messages({name: row.get(name, "") for name in ("instruction", "input")})
    return template.prompt([Message(message) for message in messages])
