"""Defines the templates whose prompts do not depend on the tokenizer: Alpaca, Text and PromptCompletion."""

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from recipe.core.errors import DataError
from recipe.text.alpaca import ALPACA_WITHOUT_INPUT, alpaca_prompt, alpaca_turns
from recipe.text.rows import BadRow, Row, is_missing, pick_columns
from recipe.text.turns import Conversion, Sample, Turn


@dataclass(frozen=True)
class Alpaca:
    """A template that formats Stanford Alpaca's columns (instruction, input, output) with Alpaca's two prompts."""

    columns: dict[str, str]
    REQUIRED: ClassVar[tuple[str, ...]] = ("instruction", "output")
    OPTIONAL: ClassVar[tuple[str, ...]] = ("input",)
    USES_CHAT_TEMPLATE: ClassVar[bool] = False
    INPUTS: ClassVar[dict[str, bool]] = {"instruction": True, "input": False}
    EXAMPLE: ClassVar[dict[str, Any]] = {"instruction": "What is the sum of the numbers?", "input": "12 + 30"}
    CHARS_AROUND: ClassVar[int] = len(ALPACA_WITHOUT_INPUT)

    def convert(self, row: Row) -> Conversion | BadRow:
        """Return a single turn, or a BadRow if the row is invalid."""
        picked = pick(row, self.columns, self.REQUIRED, self.OPTIONAL)
        if isinstance(picked, BadRow):
            return picked
        return Conversion(alpaca_turns(picked), alpaca_sample(self.columns, row.values).form)

    def prompt(self, row: dict[str, Any]) -> str:
        """Return Alpaca's prompt for the row.

        Alpaca has one prompt for rows with an input, and another prompt for rows without an input.
        """
        require(row, "instruction")
        return alpaca_prompt(row)

    def sample(self, values: dict[str, Any]) -> Sample:
        """Return a Sample whose question is the instruction followed by the input."""
        return alpaca_sample(self.columns, values)


@dataclass(frozen=True)
class Text:
    """A template for a single column of text. The loss covers the whole text."""

    columns: dict[str, str]
    REQUIRED: ClassVar[tuple[str, ...]] = ("text",)
    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    USES_CHAT_TEMPLATE: ClassVar[bool] = False
    INPUTS: ClassVar[dict[str, bool]] = {"text": True}
    EXAMPLE: ClassVar[dict[str, Any]] = {"text": "Once upon a time"}
    CHARS_AROUND: ClassVar[int] = 0

    def convert(self, row: Row) -> Conversion | BadRow:
        """Return a single turn with an empty prompt, or a BadRow if the row is invalid."""
        picked = pick(row, self.columns, self.REQUIRED, self.OPTIONAL)
        return picked if isinstance(picked, BadRow) else Conversion([Turn("", picked["text"])], "text")

    def prompt(self, row: dict[str, Any]) -> str:
        """Return the text that the model continues."""
        return require(row, "text")

    def sample(self, values: dict[str, Any]) -> Sample:
        """Return a Sample with an empty question and with the text as its answer."""
        return Sample("", values[self.columns["text"]], "text")


@dataclass(frozen=True)
class PromptCompletion:
    """A template for TRL's prompt and completion columns. The template adds no text to the columns."""

    columns: dict[str, str]
    REQUIRED: ClassVar[tuple[str, ...]] = ("prompt", "completion")
    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    USES_CHAT_TEMPLATE: ClassVar[bool] = False
    INPUTS: ClassVar[dict[str, bool]] = {"prompt": True}
    EXAMPLE: ClassVar[dict[str, Any]] = {"prompt": "The capital of France is"}
    CHARS_AROUND: ClassVar[int] = 0

    def convert(self, row: Row) -> Conversion | BadRow:
        """Return a single turn, or a BadRow if the row is invalid."""
        picked = pick(row, self.columns, self.REQUIRED, self.OPTIONAL)
        if isinstance(picked, BadRow):
            return picked
        return Conversion([Turn(picked["prompt"], picked["completion"])], "prompt and completion")

    def prompt(self, row: dict[str, Any]) -> str:
        """Return the prompt unchanged."""
        return require(row, "prompt")

    def sample(self, values: dict[str, Any]) -> Sample:
        """Return a Sample with the prompt as its question and the completion as its answer."""
        return Sample(values[self.columns["prompt"]], values[self.columns["completion"]], "prompt and completion")


def pick(
    row: Row, columns: dict[str, str], required: tuple[str, ...], optional: tuple[str, ...]
) -> dict[str, str] | BadRow:
    """Return the values that a template reads from a row, keyed by the template's column names, or a BadRow."""
    required_columns = {name: columns[name] for name in required}
    return pick_columns(row, required_columns, {name: columns[name] for name in optional if name in columns})


def bad_row(row: Row, reason: str) -> BadRow:
    """Return the BadRow for a row that was read but can't be used."""
    return BadRow(row.file, row.place, reason, json.dumps(row.values, default=str))


def require(row: dict[str, Any], name: str) -> str:
    """Return an input row's value for the key `name` as text. Raises DataError if the value is missing or empty."""
    if not row.get(name):
        raise DataError(f"the input row needs a non-empty {name}. The row's keys are {', '.join(row) or 'missing'}.")
    return str(row[name])


def alpaca_sample(columns: dict[str, str], values: dict[str, Any]) -> Sample:
    """Return the Sample for a row with Alpaca's columns."""
    extra = values.get(columns["input"]) if "input" in columns else None
    extra = None if is_missing(extra) else extra
    instruction = values[columns["instruction"]]
    question = f"{instruction}\n{extra}" if extra else instruction
    return Sample(question, values[columns["output"]], "with input" if extra else "without input")
