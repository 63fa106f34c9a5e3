"""Templates, which convert a row to turns of prompt and completion. Each template is a class.

    template = make_template("alpaca", {"instruction": "question", "output": "answer"})
    template.turns(row)                                     # [Turn(prompt, completion)], or a BadRow
    template.prompt({"instruction": "What is 1 + 1?"})      # the model's input at inference

Training, evaluation, `recipe chat` and the registered model all use these classes, so prompts are the same everywhere.
To add a template, write a class in plain_templates.py or chat_rows.py, and add its name to TEMPLATES and TemplateName.
"""

from typing import Any, ClassVar, Literal, Protocol

from recipe.text.chat_rows import AlpacaChat, Chat, PromptCompletionChat
from recipe.text.chat_templates import ChatTemplate
from recipe.text.plain_templates import Alpaca, PromptCompletion, Text
from recipe.text.readers import BadRow, Row
from recipe.text.turns import Sample, Turn

TemplateName = Literal["alpaca", "text", "prompt_completion", "chat", "alpaca_chat", "prompt_completion_chat"]


class Template(Protocol):
    """The interface of all templates. Their `columns` field maps the template's names to the columns of the file."""

    REQUIRED: ClassVar[tuple[str, ...]]
    OPTIONAL: ClassVar[tuple[str, ...]]
    USES_CHAT_TEMPLATE: ClassVar[bool]  # if true, special tokens written out in prompts are encoded as special tokens
    EXAMPLE: ClassVar[dict[str, str]]  # an example of an input row for inference
    CHARS_AROUND: ClassVar[int]  # number of characters that the template adds to a row's text

    def turns(self, row: Row) -> list[Turn] | BadRow:
        """The turns of a training row, or a BadRow with the reason."""

    def unused_keys(self, row: Row) -> dict[str, Any]:
        """What `turns` read from a row's columns but did not use, by name, for a row that `turns` accepted."""

    def prompt(self, row: dict[str, Any]) -> str:
        """The prompt for an input row, whose keys are the template's names. Raises DataError if the row is invalid."""

    def sample(self, values: dict[str, Any]) -> Sample:
        """The Sample for the values of a row that `turns` accepted."""


TEMPLATES: dict[str, type[Template]] = {
    "alpaca": Alpaca,
    "text": Text,
    "prompt_completion": PromptCompletion,
    "chat": Chat,
    "alpaca_chat": AlpacaChat,
    "prompt_completion_chat": PromptCompletionChat,
}


def make_template(name: str, columns: dict[str, str | None], chat: ChatTemplate | None = None) -> Template:
    """Create the template with this name. `columns` that map to None are not used.

    `chat` is only used by templates with USES_CHAT_TEMPLATE.
    """
    template: Any = TEMPLATES[name]
    used = {name: column for name, column in columns.items() if column is not None}
    return template(used, chat) if template.USES_CHAT_TEMPLATE else template(used)
