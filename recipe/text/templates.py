"""The templates that turn a row into turns of prompt and completion: one class each.

    template = make_template("alpaca", {"instruction": "question", "output": "answer"})
    template.turns(row)                                     # [Turn(prompt, completion)], or a BadRow
    template.prompt({"instruction": "What is 1 + 1?"})      # what the model reads when it answers

Training, evaluation, `recipe chat` and the registered model all go through them, so a prompt is the same everywhere.
To add a template: a class here, its name in TEMPLATES and in TemplateName.
"""

import json
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from recipe.core.errors import DataError
from recipe.text.chat_templates import ChatTemplate, alpaca_messages, read_messages
from recipe.text.readers import BadRow, Row, pick_columns
from recipe.text.turns import Turn

TemplateName = Literal["alpaca", "text", "chat", "alpaca_chat"]

# Stanford Alpaca's two prompts (tatsu-lab/stanford_alpaca, train.py, PROMPT_DICT), with the line end that the dataset's
# own `text` column has between "### Response:" and the answer.
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


class Sample(NamedTuple):
    """A row as the analysis looks at it: what is asked, what is answered, and the form that it has."""

    question: str
    answer: str
    form: str


class Template(Protocol):
    """What every template has. `columns` maps the template's names to the columns of the file."""

    REQUIRED: ClassVar[tuple[str, ...]]
    OPTIONAL: ClassVar[tuple[str, ...]]
    USES_CHAT_TEMPLATE: ClassVar[bool]  # the tokenizer's Jinja template; special tokens in prompts are meant as such
    EXAMPLE: ClassVar[dict[str, str]]  # a row to answer
    CHARS_AROUND: ClassVar[int]  # that the template writes around a row's own text

    def turns(self, row: Row) -> list[Turn] | BadRow:
        """The turns of a row to train on, or why it can't be used."""

    def prompt(self, row: dict[str, Any]) -> str:
        """What the model reads for a row to answer, which has the template's names. Raises DataError."""

    def sample(self, values: dict[str, Any]) -> Sample:
        """A row that `turns` accepted, for the analysis."""


@dataclass(frozen=True)
class Alpaca:
    """Stanford Alpaca's columns, instruction, input and output, under its two prompts."""

    columns: dict[str, str]
    REQUIRED: ClassVar[tuple[str, ...]] = ("instruction", "output")
    OPTIONAL: ClassVar[tuple[str, ...]] = ("input",)
    USES_CHAT_TEMPLATE: ClassVar[bool] = False
    EXAMPLE: ClassVar[dict[str, str]] = {"instruction": "What is the sum of the numbers?", "input": "12 + 30"}
    CHARS_AROUND: ClassVar[int] = len(ALPACA_WITHOUT_INPUT)

    def turns(self, row: Row) -> list[Turn] | BadRow:
        """One turn."""
        picked = _pick(row, self.columns, self.REQUIRED, self.OPTIONAL)
        return picked if isinstance(picked, BadRow) else alpaca_turns(picked)

    def prompt(self, row: dict[str, Any]) -> str:
        """One of Alpaca's two prompts."""
        _require(row, "instruction")
        return alpaca_prompt(row)

    def sample(self, values: dict[str, Any]) -> Sample:
        """Instruction and input are the question."""
        return _alpaca_sample(self.columns, values)


@dataclass(frozen=True)
class Text:
    """One ready column; all of it is trained."""

    columns: dict[str, str]
    REQUIRED: ClassVar[tuple[str, ...]] = ("text",)
    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    USES_CHAT_TEMPLATE: ClassVar[bool] = False
    EXAMPLE: ClassVar[dict[str, str]] = {"text": "Once upon a time"}
    CHARS_AROUND: ClassVar[int] = 0

    def turns(self, row: Row) -> list[Turn] | BadRow:
        """One turn without a prompt."""
        picked = _pick(row, self.columns, self.REQUIRED, self.OPTIONAL)
        return picked if isinstance(picked, BadRow) else [Turn("", picked["text"])]

    def prompt(self, row: dict[str, Any]) -> str:
        """The text, which the model continues."""
        return _require(row, "text")

    def sample(self, values: dict[str, Any]) -> Sample:
        """The text is the answer."""
        return Sample("", values[self.columns["text"]], "text")


@dataclass(frozen=True)
class Chat:
    """A column of messages, written by a chat template; what the assistant says is trained."""

    columns: dict[str, str]
    chat: ChatTemplate | None = None  # only `sample` works without one
    REQUIRED: ClassVar[tuple[str, ...]] = ("messages",)
    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    USES_CHAT_TEMPLATE: ClassVar[bool] = True
    EXAMPLE: ClassVar[dict[str, str]] = {"instruction": "Name three colours."}
    CHARS_AROUND: ClassVar[int] = 0

    def turns(self, row: Row) -> list[Turn] | BadRow:
        """One turn for each answer of the assistant."""
        column = self.columns["messages"]
        if column not in row.values:
            return _refused(row, f"the column {column!r} is missing; the row has {', '.join(map(repr, row.values))}")
        messages = read_messages(row.values[column])
        return _refused(row, messages) if isinstance(messages, str) else _chat_turns(self.chat, row, messages)

    def prompt(self, row: dict[str, Any]) -> str:
        """The messages so far, or an instruction as the only one."""
        return _chat_prompt(self.chat, row)

    def sample(self, values: dict[str, Any]) -> Sample:
        """All messages before the last answer are the question."""
        messages = read_messages(values[self.columns["messages"]])
        assert not isinstance(messages, str), messages
        answers = sum(message["role"] == "assistant" for message in messages)
        system = ", system message" if messages[0]["role"] == "system" else ""
        question = "\n".join(message["content"] for message in messages[:-1])
        return Sample(question, messages[-1]["content"], f"{answers} answer{'s' if answers > 1 else ''}{system}")


@dataclass(frozen=True)
class AlpacaChat:
    """Alpaca's columns as a chat of two messages, written by a chat template."""

    columns: dict[str, str]
    chat: ChatTemplate | None = None  # only `sample` works without one
    REQUIRED: ClassVar[tuple[str, ...]] = Alpaca.REQUIRED
    OPTIONAL: ClassVar[tuple[str, ...]] = Alpaca.OPTIONAL
    USES_CHAT_TEMPLATE: ClassVar[bool] = True
    EXAMPLE: ClassVar[dict[str, str]] = Alpaca.EXAMPLE
    CHARS_AROUND: ClassVar[int] = Alpaca.CHARS_AROUND

    def turns(self, row: Row) -> list[Turn] | BadRow:
        """One turn."""
        picked = _pick(row, self.columns, self.REQUIRED, self.OPTIONAL)
        return picked if isinstance(picked, BadRow) else _chat_turns(self.chat, row, alpaca_messages(picked))

    def prompt(self, row: dict[str, Any]) -> str:
        """The instruction and input as one message, or the messages so far."""
        return _chat_prompt(self.chat, row)

    def sample(self, values: dict[str, Any]) -> Sample:
        """Instruction and input are the question."""
        return _alpaca_sample(self.columns, values)


TEMPLATES: dict[str, type[Alpaca] | type[Text] | type[Chat] | type[AlpacaChat]] = {
    "alpaca": Alpaca,
    "text": Text,
    "chat": Chat,
    "alpaca_chat": AlpacaChat,
}


def make_template(name: str, columns: dict[str, str], chat: ChatTemplate | None = None) -> Template:
    """A template by its name in params.yaml. `chat` is for those that use a chat template."""
    template = TEMPLATES[name]
    if issubclass(template, Chat | AlpacaChat):
        return template(columns, chat)
    return template(columns)


def alpaca_prompt(row: dict[str, Any]) -> str:
    """Alpaca's prompt for a row with `instruction` and perhaps `input`."""
    form = ALPACA_WITH_INPUT if row.get("input") else ALPACA_WITHOUT_INPUT
    # Not str.format: a row may contain braces.
    instruction, rest = form.split("{instruction}")
    return instruction + row["instruction"] + rest.replace("{input}", row.get("input") or "", 1)


def alpaca_turns(row: dict[str, str]) -> list[Turn]:
    """The turn of a row with Alpaca's own names."""
    return [Turn(alpaca_prompt(row), row["output"])]


def question_in(prompt: str) -> str:
    """What a prompt asks, without the text that Alpaca's prompts begin and end with; of another template, all of it."""
    for form in (ALPACA_WITH_INPUT, ALPACA_WITHOUT_INPUT):
        before, after = form.split("{instruction}")
        end = after.rsplit("{input}", 1)[-1]
        if prompt.startswith(before) and prompt.endswith(end):
            return prompt[len(before) : len(prompt) - len(end)].replace("\n\n### Input:\n", "\n\n", 1)
    return prompt


def _pick(
    row: Row, columns: dict[str, str], required: tuple[str, ...], optional: tuple[str, ...]
) -> dict[str, str] | BadRow:
    """A row's text under the template's names, or why it is refused."""
    named = {name: columns[name] for name in required}
    return pick_columns(row, named, {name: columns[name] for name in optional if name in columns})


def _refused(row: Row, reason: str) -> BadRow:
    return BadRow(row.file, row.place, reason, json.dumps(row.values, default=str))


def _require(row: dict[str, Any], name: str) -> str:
    if not row.get(name):
        raise DataError(f"a row to answer needs {name}; this one has {', '.join(row) or 'nothing'}.")
    return str(row[name])


def _alpaca_sample(columns: dict[str, str], values: dict[str, Any]) -> Sample:
    given = values.get(columns["input"]) if "input" in columns else None
    instruction = values[columns["instruction"]]
    question = f"{instruction}\n{given}" if given else instruction
    return Sample(question, values[columns["output"]], "with input" if given else "without input")


def _chat_turns(chat: ChatTemplate | None, row: Row, messages: list[dict[str, str]]) -> list[Turn] | BadRow:
    assert chat is not None
    try:
        return chat.turns(messages)
    except DataError as error:
        return _refused(row, str(error))


def _chat_prompt(chat: ChatTemplate | None, row: dict[str, Any]) -> str:
    assert chat is not None
    if row.get("messages"):
        messages = read_messages([*row["messages"], {"role": "assistant", "content": "-"}])  # it wants an answer
        if isinstance(messages, str):
            raise DataError(f"a row to answer: {messages}.")
        return chat.prompt(messages[:-1])
    _require(row, "instruction")
    return chat.prompt(alpaca_messages({name: row.get(name, "") for name in ("instruction", "input")}))
