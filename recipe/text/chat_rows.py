"""Defines the templates that convert a row to messages and pass the messages to a chat template.

A row contains either lists of messages or columns that form a chat. The `_read` method of each class converts the
columns to a chat (the `Chat` class in messages.py). The functions at the end of this file contain the code that the
classes share.
"""

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from recipe.core.errors import DataError
from recipe.text.alpaca import alpaca_messages
from recipe.text.chat_templates import ChatTemplate
from recipe.text.messages import Chat as Messages
from recipe.text.messages import message_list, parse_json, read_chat
from recipe.text.plain_templates import Alpaca, alpaca_sample, bad_row, pick, require
from recipe.text.rows import BadRow, Row, is_missing, list_columns
from recipe.text.turns import Conversion, Sample

# The keys of an input row for inference. All are optional, because a row has either messages or an instruction.
CHAT_INPUTS = dict.fromkeys(("messages", "instruction", "input", "system", "tools"), False)

MESSAGE_CHARS = 26  # the number of characters that a chat template writes around a message, including its role


@dataclass(frozen=True)
class Chat:
    """A template for a column of messages, with optional columns for a system message and tools.

    The messages are rendered by a chat template. With `loss_on: completion`, the loss covers the assistant's messages,
    except those that are marked as excluded.
    """

    columns: dict[str, str]
    chat: ChatTemplate | None = None  # can be None if only `sample` is called
    REQUIRED: ClassVar[tuple[str, ...]] = ("messages",)
    OPTIONAL: ClassVar[tuple[str, ...]] = ("system", "tools")
    USES_CHAT_TEMPLATE: ClassVar[bool] = True
    INPUTS: ClassVar[dict[str, bool]] = CHAT_INPUTS
    EXAMPLE: ClassVar[dict[str, Any]] = {"messages": [{"role": "user", "content": "Name three colours."}]}
    CHARS_AROUND: ClassVar[int] = 0

    def convert(self, row: Row) -> Conversion | BadRow:
        """Return one turn for each assistant message in the loss, or a BadRow if the row is invalid."""
        return _convert(self.chat, row, self._read(row.values))

    def prompt(self, row: dict[str, Any]) -> str:
        """Return the prompt for the row's messages or, if the row has none, for its instruction and input."""
        return _chat_prompt(self.chat, row)

    def sample(self, values: dict[str, Any]) -> Sample:
        """Return a Sample whose answer is the last answer in the loss, and whose question is all messages before it."""
        return _chat_sample(self._read(values))

    def _read(self, values: dict[str, Any]) -> Messages | str:
        [messages], optional, missing = _values(self, values)
        return missing or read_chat(messages, **optional)


@dataclass(frozen=True)
class PromptCompletionChat:
    """A template for TRL's prompt and completion columns, each of which contains text or a list of messages.

    The messages are rendered by a chat template. With `loss_on: completion`, the loss covers only the assistant's
    messages in the completion, except those that are marked as excluded.
    """

    columns: dict[str, str]
    chat: ChatTemplate | None = None  # can be None if only `sample` is called
    REQUIRED: ClassVar[tuple[str, ...]] = ("prompt", "completion")
    OPTIONAL: ClassVar[tuple[str, ...]] = ("system", "tools")
    USES_CHAT_TEMPLATE: ClassVar[bool] = True
    INPUTS: ClassVar[dict[str, bool]] = CHAT_INPUTS
    EXAMPLE: ClassVar[dict[str, Any]] = Chat.EXAMPLE
    CHARS_AROUND: ClassVar[int] = 2 * MESSAGE_CHARS

    def convert(self, row: Row) -> Conversion | BadRow:
        """Return one turn for each assistant message in the loss, or a BadRow if the row is invalid."""
        return _convert(self.chat, row, self._read(row.values))

    def prompt(self, row: dict[str, Any]) -> str:
        """Return the prompt for the row's messages or, if the row has none, for its instruction and input."""
        return _chat_prompt(self.chat, row)

    def sample(self, values: dict[str, Any]) -> Sample:
        """Return a Sample whose answer is the last answer in the loss, and whose question is all messages before it."""
        return _chat_sample(self._read(values))

    def _read(self, values: dict[str, Any]) -> Messages | str:
        (prompt, completion), optional, missing = _values(self, values)
        messages = []
        for name, role, part in (("prompt", "user", prompt), ("completion", "assistant", completion)):
            parsed = message_list(part)
            if parsed is None and isinstance(part, str):
                parsed = [{"role": role, "content": part}]
            if parsed is None:
                missing = (
                    missing or f"{self.columns[name]!r} is neither text nor a list of messages with role and content"
                )
            elif name == "prompt":
                messages += [{**message, "train": False} for message in parsed]
            else:
                messages += parsed
        return missing or read_chat(messages, **optional)


@dataclass(frozen=True)
class AlpacaChat:
    """A template that turns Alpaca's columns into a chat, which a chat template renders.

    The instruction and the input form the user's last message. The contents of LLaMA-Factory's `system` and `history`
    columns precede this message. `history` is a list of [question, answer] pairs. As in LLaMA-Factory, the answers in
    the history are in the loss.
    """

    columns: dict[str, str]
    chat: ChatTemplate | None = None  # can be None if only `sample` is called
    REQUIRED: ClassVar[tuple[str, ...]] = Alpaca.REQUIRED
    OPTIONAL: ClassVar[tuple[str, ...]] = (*Alpaca.OPTIONAL, "system", "history")
    USES_CHAT_TEMPLATE: ClassVar[bool] = True
    INPUTS: ClassVar[dict[str, bool]] = {**CHAT_INPUTS, "history": False}
    EXAMPLE: ClassVar[dict[str, Any]] = Alpaca.EXAMPLE
    CHARS_AROUND: ClassVar[int] = 2 * MESSAGE_CHARS

    def convert(self, row: Row) -> Conversion | BadRow:
        """Return one turn for each answer in the history and one for the output, or a BadRow if the row is invalid."""
        chat = self._read(row)
        return chat if isinstance(chat, BadRow) else _convert(self.chat, row, chat)

    def prompt(self, row: dict[str, Any]) -> str:
        """Return the prompt for the row's messages or, if the row has none, for its instruction and input."""
        return _chat_prompt(self.chat, row)

    def sample(self, values: dict[str, Any]) -> Sample:
        """Return a Sample whose question is the history, followed by the instruction and the input."""
        question, answer, form = alpaca_sample(self.columns, values)
        if not (history := self._history(values)):
            return Sample(question, answer, form)
        return Sample("\n".join([*(text for pair in history for text in pair), question]), answer, f"{form}, history")

    def _read(self, row: Row) -> Messages | str | BadRow:
        picked = pick(row, self.columns, self.REQUIRED, ("input", "system"))
        if isinstance(picked, BadRow):
            return picked
        history = self._history(row.values)
        if history is None:
            return f"{self.columns['history']!r} is not a list of [question, answer] pairs"
        return read_chat([*_earlier(history), *alpaca_messages(picked)], system=picked.get("system"))

    def _history(self, values: dict[str, Any]) -> list[list[str]] | None:
        return _read_history(values.get(self.columns.get("history", "")))


def _read_history(value: Any) -> list[list[str]] | None:
    """Return a history as [question, answer] pairs, or None if the value is invalid.

    A valid value is a list of such pairs, the JSON text of such a list, or a missing value, which is an empty history.
    """
    if is_missing(value):
        return []
    pairs = parse_json(value) if isinstance(value, str) else value
    if not isinstance(pairs, list):
        return None
    is_valid = all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in pairs
    )
    return pairs if is_valid else None


def _earlier(history: list[list[str]]) -> list[dict[str, str]]:
    """Return the messages of a history."""
    return [
        {"role": role, "content": text}
        for pair in history
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def _values(
    template: Chat | PromptCompletionChat, values: dict[str, Any]
) -> tuple[list[Any], dict[str, Any], str | None]:
    """Return the values of a row's required columns, the values of its optional columns, and an error message or None.

    The error message names the first required column that is missing. The optional values are keyed by the names that
    the template uses.
    """
    columns = template.columns
    missing = next((columns[name] for name in template.REQUIRED if columns[name] not in values), None)
    optional = {name: values.get(columns[name]) for name in template.OPTIONAL if name in columns}
    return (
        [values.get(columns[name]) for name in template.REQUIRED],
        {name: None if is_missing(value) else value for name, value in optional.items()},
        missing and f"the column {missing!r} is missing. Columns found: {list_columns(values)}",
    )


def _convert(template: ChatTemplate | None, row: Row, chat: Messages | str) -> Conversion | BadRow:
    assert template is not None
    if isinstance(chat, str):
        return bad_row(row, chat)
    try:
        return Conversion(template.turns(chat), _form(chat), template.unused_keys(chat))
    except DataError as error:
        return bad_row(row, str(error))


def _chat_sample(chat: Messages | str) -> Sample:
    assert not isinstance(chat, str), chat
    question = "\n".join(message.content for message in chat.messages[:-1])
    last = chat.messages[-1]
    return Sample(question, last.content or json.dumps(last.tool_calls, ensure_ascii=False), _form(chat))


def _form(chat: Messages) -> str:
    """Return a description of a chat, such as `2 answers, system message, tools`."""
    answers = [message for message in chat.messages if message.role == "assistant"]
    form = f"{len(answers)} answer{'s' if len(answers) > 1 else ''}"
    form += ", system message" if chat.messages[0].role == "system" else ""
    form += ", tools" if chat.tools or any(message.tool_calls for message in chat.messages) else ""
    return form + ("" if all(message.trained for message in answers) else ", untrained answers")


def _chat_prompt(template: ChatTemplate | None, row: dict[str, Any]) -> str:
    """Return the prompt for a row with `messages`, or with `instruction` and optionally `input` and `history`.

    Both kinds of row can also have `system` and `tools`. Raises DataError if the row is invalid.
    """
    assert template is not None
    if is_missing(row.get("messages")):
        require(row, "instruction")
        if (history := _read_history(row.get("history"))) is None:
            raise DataError("the input row is invalid: history is not a list of [question, answer] pairs.")
        listed = _earlier(history) + alpaca_messages({name: row.get(name, "") for name in ("instruction", "input")})
    elif both := [name for name in ("instruction", "input", "history") if not is_missing(row.get(name))]:
        raise DataError(f"the input row has both messages and {both[0]}. Use only one of them.")
    else:
        listed = message_list(row["messages"]) or []
    if not listed:
        raise DataError("the input row is invalid: messages is not a list of objects with role and content.")
    # Add an answer, because read_chat rejects a chat without an answer.
    chat = read_chat([*listed, {"role": "assistant", "content": "-"}], system=row.get("system"), tools=row.get("tools"))
    if isinstance(chat, str):
        raise DataError(f"the input row is invalid: {chat}.")
    if chat.messages[-2].role == "assistant":
        raise DataError(
            "the input row is invalid: the last message is from the assistant, so there is nothing to answer."
        )
    return template.prompt(chat.messages[:-1], chat.tools)
