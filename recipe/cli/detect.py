"""Finds the template and the columns that fit the first rows of a dataset, for `recipe new --data`.

detect([{"conversations": [{"from": "human", ...}], "id": "a1"}])
# Detected(template="chat", columns={"messages": "conversations"}, unused=["id"])
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from recipe.text.file_shape import SENDER_KEYS
from recipe.text.messages import READ_KEYS, message_list
from recipe.text.readers import read_rows
from recipe.text.rows import Row, is_missing

NUM_ROWS = 20_000  # maximum number of rows to read, which takes less than a second
# Common column names in public datasets, for each field of a template. The first name that fits is used.
MESSAGES = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")
PROMPTS, COMPLETIONS = ("prompt",), ("completion", "response")
INSTRUCTIONS = ("instruction", "question", "query", "user", "problem")
OUTPUTS = ("output", "answer", "response", "completion", "assistant", "solution")
EXTRAS = {
    "input": ("input", "context"),
    "system": ("system", "system_prompt"),
    "tools": ("tools", "functions"),
    "history": ("history",),
    "category": ("category",),
}


@dataclass
class Detected:
    """The detected template, the columns that it uses, the remaining columns, and other keys of the messages.

    Whether a chat template writes these keys depends on the template.
    """

    template: str
    columns: dict[str, str]
    unused: list[str] = field(default_factory=list)
    message_keys: list[str] = field(default_factory=list)


def first_rows(files: Sequence[Path]) -> tuple[list[dict[str, Any]], int]:
    """Read the first NUM_ROWS rows. Return the values of the valid rows, and the number of malformed rows.

    Raises DataError if a file can't be read.
    """
    rows = list(islice((row for file in files for row in read_rows(file)), NUM_ROWS))
    valid = [row.values for row in rows if isinstance(row, Row)]
    return valid, len(rows) - len(valid)


def detect(rows: list[dict[str, Any]]) -> Detected | None:
    """Return the template and the columns that fit the rows, or None if no template fits."""
    # The non-empty values of each column.
    values: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.items():
            if not is_missing(value) and value not in ([], {}):
                values.setdefault(name, []).append(value)
    detected = _template(values, len(rows))
    if detected is None:
        return None
    template, columns = detected
    fields = {
        "alpaca": ("input", "category"), "alpaca_chat": ("input", "system", "history", "category"),
        "chat": ("system", "tools", "category"), "prompt_completion_chat": ("system", "tools", "category"),
    }.get(template, ("category",))  # fmt: skip
    for name in fields:
        column = next((column for column in EXTRAS[name] if column in values and column not in columns.values()), None)
        if column is not None and (name != "category" or all(isinstance(value, str) for value in values[column])):
            columns[name] = column
    unused = [name for name in values if name not in columns.values()]
    return Detected(template, columns, unused, _message_keys(values, columns))


def has_preferences(rows: list[dict[str, Any]]) -> bool:
    """Return whether the rows have chosen and rejected answers, as for DPO."""
    return any(not is_missing(row.get("chosen")) and not is_missing(row.get("rejected")) for row in rows)


def _message_keys(values: dict[str, list[Any]], columns: dict[str, str]) -> list[str]:
    """Return the keys of messages that have a value, and that are neither read nor marks."""
    texts = (value for name in ("messages", "prompt", "completion") for value in values.get(columns.get(name, ""), []))
    messages = (message for value in texts for message in message_list(value) or [])
    keys = (key for message in messages for key, value in message.items() if value)
    return [key for key in dict.fromkeys(keys) if key not in READ_KEYS]


def _template(values: dict[str, list[Any]], num_rows: int) -> tuple[str, dict[str, str]] | None:
    """Return the name and the required columns of the template that fits, or None if no template fits.

    A required column must have a value of the correct type in more than half of the rows.
    """

    def find(names: Sequence[str], *tests: Any) -> str | None:
        fits = (
            name for name in names
            if sum(any(test(value) for test in tests) for value in values.get(name, [])) > num_rows / 2
        )  # fmt: skip
        return next(fits, None)

    def is_text(value: object) -> bool:
        return isinstance(value, str)

    if messages := find(MESSAGES, is_messages):
        return "chat", {"messages": messages}
    prompt, completion = find(PROMPTS, is_text, is_messages), find(COMPLETIONS, is_text, is_messages)
    if prompt and completion:
        as_chat = any(is_messages(value) for name in (prompt, completion) for value in values[name])
        extra = any(name in values for name in (*EXTRAS["system"], *EXTRAS["tools"]))
        columns = {"prompt": prompt, "completion": completion}
        return "prompt_completion_chat" if as_chat or extra else "prompt_completion", columns
    instruction, output = find(INSTRUCTIONS, is_text), find(OUTPUTS, is_text)
    if instruction and output:
        as_chat = any(name in values for name in (*EXTRAS["system"], *EXTRAS["history"]))
        return "alpaca_chat" if as_chat else "alpaca", {"instruction": instruction, "output": output}
    text = find(("text",), is_text)
    return ("text", {"text": text}) if text else None


def is_messages(value: object) -> bool:
    """Return whether a value is a list of objects that have a `role` or `from` key, or the JSON text of such a list."""
    messages = message_list(value)
    return bool(messages) and all(SENDER_KEYS & message.keys() for message in messages or [])
