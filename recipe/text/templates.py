"""Defines the templates. A template is a class that converts a row to turns, each with a prompt and a completion.

    template = make_template("alpaca", {"instruction": "question", "output": "answer"})
    template.convert(row)                                   # Conversion([Turn(prompt, completion)]), or a BadRow
    template.prompt({"instruction": "What is 1 + 1?"})      # the model's input at inference

Training, evaluation, `recipe chat` and the registered model use the same classes, so they all use the same prompts. To
add a template, write a class in plain_templates.py or chat_rows.py, and add its name to TEMPLATES and TemplateName.
"""

from typing import Any, ClassVar, Literal, Protocol

from recipe.text.chat_rows import AlpacaChat, Chat, PromptCompletionChat
from recipe.text.chat_templates import ChatTemplate
from recipe.text.plain_templates import Alpaca, PromptCompletion, Text
from recipe.text.rows import BadRow, Row
from recipe.text.turns import Conversion, Sample

TemplateName = Literal["alpaca", "text", "prompt_completion", "chat", "alpaca_chat", "prompt_completion_chat"]


class Template(Protocol):
    """The interface of all templates.

    The `columns` field maps the template's column names to the file's column names.
    """

    REQUIRED: ClassVar[tuple[str, ...]]
    OPTIONAL: ClassVar[tuple[str, ...]]
    USES_CHAT_TEMPLATE: ClassVar[bool]  # if true, special tokens in the text of a prompt are encoded as special tokens
    INPUTS: ClassVar[dict[str, bool]]  # the keys of an input row, and whether each key is required
    EXAMPLE: ClassVar[dict[str, Any]]  # an example of an input row
    CHARS_AROUND: ClassVar[int]  # the number of characters that the template adds to the text of a row

    def convert(self, row: Row) -> Conversion | BadRow:
        """Return the turns of a training row and the unused parts of its messages, or a BadRow with the reason."""

    def prompt(self, row: dict[str, Any]) -> str:
        """Return the prompt for an input row.

        The row's keys are the template's column names. Raises DataError if the row is invalid.
        """

    def sample(self, values: dict[str, Any]) -> Sample:
        """Return the Sample for the values of a row that `convert` has accepted."""


TEMPLATES: dict[str, type[Template]] = {
    "alpaca": Alpaca,
    "text": Text,
    "prompt_completion": PromptCompletion,
    "chat": Chat,
    "alpaca_chat": AlpacaChat,
    "prompt_completion_chat": PromptCompletionChat,
}


def make_template(name: str, columns: dict[str, str | None], chat: ChatTemplate | None = None) -> Template:
    """Create the template with this name. Entries in `columns` with the value None are ignored.

    `chat` is used only by templates for which USES_CHAT_TEMPLATE is true.
    """
    template: Any = TEMPLATES[name]
    used = {name: column for name, column in columns.items() if column is not None}
    return template(used, chat) if template.USES_CHAT_TEMPLATE else template(used)
