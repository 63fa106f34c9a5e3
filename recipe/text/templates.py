"""Templates, which convert a row to turns of prompt and completion. Each template is a class.

    template = make_template("alpaca", {"instruction": "question", "output": "answer"})
    template.turns(row)                                     # [Turn(prompt, completion)], or a BadRow
    template.prompt({"instruction": "What is 1 + 1?"})      # the model's input at inference

Training, evaluation, `recipe chat` and the registered model all use these classes, so prompts are the same everywhere.
To add a template, write a class here, and add its name to TEMPLATES and to TemplateName.
"""

import json
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from recipe.core.errors import DataError
from recipe.text.alpaca import ALPACA_WITHOUT_INPUT, alpaca_messages, alpaca_prompt, alpaca_turns
from recipe.text.chat_templates import ChatTemplate
from recipe.text.messages import Chat as Messages
from recipe.text.messages import Message, read_chat
from recipe.text.readers import BadRow, Row, pick_columns
from recipe.text.turns import Turn

TemplateName = Literal["alpaca", "text", "chat", "alpaca_chat"]


class Sample(NamedTuple):
    """A row as the data analysis uses it: its question, its answer, and its form (such as `with input`)."""

    question: str
    answer: str
    form: str


class Template(Protocol):
    """The interface of all templates. Their `columns` field maps the template's names to the columns of the file."""

    REQUIRED: ClassVar[tuple[str, ...]]
    OPTIONAL: ClassVar[tuple[str, ...]]
    USES_CHAT_TEMPLATE: ClassVar[bool]  # if true, special tokens written out in prompts are encoded as special tokens
    EXAMPLE: ClassVar[dict[str, str]]  # an example of an input row for inference
    CHARS_AROUND: ClassVar[int]  # number of characters that the template adds to a row's text

    def turns(self, row: Row) -> list[Turn] | BadRow:
        """The turns of a training row, or a BadRow with the reason."""

    def prompt(self, row: dict[str, Any]) -> str:
        """The prompt for an input row, whose keys are the template's names. Raises DataError if the row is invalid."""

    def sample(self, values: dict[str, Any]) -> Sample:
        """The Sample for the values of a row that `turns` accepted."""


@dataclass(frozen=True)
class Alpaca:
    """Stanford Alpaca's columns (instruction, input, output), formatted with Alpaca's two prompts."""

    columns: dict[str, str]
    REQUIRED: ClassVar[tuple[str, ...]] = ("instruction", "output")
    OPTIONAL: ClassVar[tuple[str, ...]] = ("input",)
    USES_CHAT_TEMPLATE: ClassVar[bool] = False
    EXAMPLE: ClassVar[dict[str, str]] = {"instruction": "What is the sum of the numbers?", "input": "12 + 30"}
    CHARS_AROUND: ClassVar[int] = len(ALPACA_WITHOUT_INPUT)

    def turns(self, row: Row) -> list[Turn] | BadRow:
        """A single turn."""
        picked = _pick(row, self.columns, self.REQUIRED, self.OPTIONAL)
        return picked if isinstance(picked, BadRow) else alpaca_turns(picked)

    def prompt(self, row: dict[str, Any]) -> str:
        """Alpaca's prompt, which depends on whether the row has an input."""
        _require(row, "instruction")
        return alpaca_prompt(row)

    def sample(self, values: dict[str, Any]) -> Sample:
        """The question is the instruction followed by the input."""
        return _alpaca_sample(self.columns, values)


@dataclass(frozen=True)
class Text:
    """A single column of text. The loss covers the whole text."""

    columns: dict[str, str]
    REQUIRED: ClassVar[tuple[str, ...]] = ("text",)
    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    USES_CHAT_TEMPLATE: ClassVar[bool] = False
    EXAMPLE: ClassVar[dict[str, str]] = {"text": "Once upon a time"}
    CHARS_AROUND: ClassVar[int] = 0

    def turns(self, row: Row) -> list[Turn] | BadRow:
        """A single turn with an empty prompt."""
        picked = _pick(row, self.columns, self.REQUIRED, self.OPTIONAL)
        return picked if isinstance(picked, BadRow) else [Turn("", picked["text"])]

    def prompt(self, row: dict[str, Any]) -> str:
        """The text, which the model continues."""
        return _require(row, "text")

    def sample(self, values: dict[str, Any]) -> Sample:
        """The answer is the text, and the question is empty."""
        return Sample("", values[self.columns["text"]], "text")


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
            return _bad_row(row, f"the column {column!r} is missing; the row has {', '.join(map(repr, row.values))}")
        chat = self._read(row.values)
        return _bad_row(row, chat) if isinstance(chat, str) else _chat_turns(self.chat, row, chat)

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
        picked = _pick(row, self.columns, self.REQUIRED, self.OPTIONAL)
        if isinstance(picked, BadRow):
            return picked
        messages = [Message(message) for message in alpaca_messages(picked)]
        return _chat_turns(self.chat, row, Messages(messages))

    def prompt(self, row: dict[str, Any]) -> str:
        """The prompt for an instruction and its input in a single message, or for the messages so far."""
        return _chat_prompt(self.chat, row)

    def sample(self, values: dict[str, Any]) -> Sample:
        """The question is the instruction followed by the input."""
        return _alpaca_sample(self.columns, values)


TEMPLATES: dict[str, type[Alpaca] | type[Text] | type[Chat] | type[AlpacaChat]] = {
    "alpaca": Alpaca,
    "text": Text,
    "chat": Chat,
    "alpaca_chat": AlpacaChat,
}


def make_template(name: str, columns: dict[str, str], chat: ChatTemplate | None = None) -> Template:
    """Create the template with this name. `chat` is only used by templates with USES_CHAT_TEMPLATE."""
    template = TEMPLATES[name]
    if issubclass(template, Chat | AlpacaChat):
        return template(columns, chat)
    return template(columns)


def _pick(
    row: Row, columns: dict[str, str], required: tuple[str, ...], optional: tuple[str, ...]
) -> dict[str, str] | BadRow:
    """The values that a template needs from a row, keyed by the template's names, or a BadRow with the reason."""
    required_columns = {name: columns[name] for name in required}
    return pick_columns(row, required_columns, {name: columns[name] for name in optional if name in columns})


def _bad_row(row: Row, reason: str) -> BadRow:
    return BadRow(row.file, row.place, reason, json.dumps(row.values, default=str))


def _require(row: dict[str, Any], name: str) -> str:
    if not row.get(name):
        raise DataError(f"the input row needs a non-empty {name}; the row's keys are {', '.join(row) or 'missing'}.")
    return str(row[name])


def _alpaca_sample(columns: dict[str, str], values: dict[str, Any]) -> Sample:
    extra = values.get(columns["input"]) if "input" in columns else None
    instruction = values[columns["instruction"]]
    question = f"{instruction}\n{extra}" if extra else instruction
    return Sample(question, values[columns["output"]], "with input" if extra else "without input")


def _chat_turns(template: ChatTemplate | None, row: Row, chat: Messages) -> list[Turn] | BadRow:
    assert template is not None
    try:
        return template.turns(chat)
    except DataError as error:
        return _bad_row(row, str(error))


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
    _require(row, "instruction")
    messages = alpaca_messages({name: row.get(name, "") for name in ("instruction", "input")})
    return template.prompt([Message(message) for message in messages])
