"""Turns rows into examples: reads and checks them, applies the template, and assigns train or validation."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recipe.core.errors import DataError
from recipe.text.readers import BadRow, read_rows, safe
from recipe.text.templates import Template
from recipe.text.turns import Turn

SHOWN_MISTAKES = 20


@dataclass
class Example:
    """A valid row, before tokenization."""

    turns: list[Turn]
    category: str
    file: str
    place: str

    @property
    def num_chars(self) -> int:
        """Characters of prompts and completions."""
        return sum(len(turn.prompt) + len(turn.completion) for turn in self.turns)

    @property
    def prompt_key(self) -> bytes:
        """A digest that rows with the same prompt share; for a row without a prompt, the digest of its completion."""
        return hashlib.sha256((self.prompt or self.turns[-1].completion).encode()).digest()

    @property
    def prompt(self) -> str:
        """All text before the last answer, because many chats open with the same greeting."""
        before = "".join(turn.prompt + turn.completion + (turn.end or "") for turn in self.turns[:-1])
        return before + self.turns[-1].prompt


def in_validation(prompt_key: bytes, fraction: float) -> bool:
    """Whether a row belongs to validation. Depends only on the content of its prompt."""
    return int.from_bytes(prompt_key[:8], "big") < fraction * 2**64


def read_examples(files: dict[str, Path], template: Template, columns: dict[str, str]) -> Iterator[Example | BadRow]:
    """The rows of the files ({name: path}), one at a time: an example, or a BadRow that the template cannot use."""
    seen: dict[str, None] = {}
    for name, path in files.items():
        for row in read_rows(path, name):
            if isinstance(row, BadRow):
                yield row
                continue
            seen.update(dict.fromkeys(row.values))
            turns = template.turns(row)
            if isinstance(turns, BadRow):
                yield turns
                continue
            category = row.values.get(columns.get("category", ""))
            yield Example(turns, "" if category is None else safe(str(category)), row.file, row.place)
    check_columns(template.REQUIRED, columns, set(seen), list(files))


def check_columns(required: tuple[str, ...], columns: dict[str, str], seen: set[str], files: list[str]) -> None:
    """Raise DataError if no row has a column that is required, or that params.yaml maps to another name (a typo).

    An optional column with the default name, such as Alpaca's `input`, may be missing everywhere.
    """
    for name, column in columns.items():
        if column not in seen and (name != column or name in required) and seen:
            raise DataError(
                f"sequence.columns.{name} is {column!r}, but no row of {', '.join(files)} has that column; "
                f"the rows have {', '.join(sorted(map(repr, seen)))}. Set it to the column that contains the {name}."
            )


def report_bad_rows(bad: list[BadRow]) -> str:
    """One message about all bad rows: the first SHOWN_MISTAKES in full, and the number of the others."""
    lines = [f"  {row.file}, {row.place}: {row.reason}" for row in bad[:SHOWN_MISTAKES]]
    if len(bad) > SHOWN_MISTAKES:
        lines.append(f"  and {len(bad) - SHOWN_MISTAKES} more")
    count = "1 row is" if len(bad) == 1 else f"{len(bad)} rows are"
    return "\n".join([f"{count} malformed:", *lines])


class Splitter:
    """Assigns examples to splits, and checks that no prompt is in both.

    If no validation split is given, a `fraction` of the prompts is held out as one. A given validation split must be
    assigned before the training rows.
    """

    def __init__(self, fraction: float, *, validation_is_given: bool) -> None:
        self.fraction, self.given = fraction, validation_is_given
        self.count = {"train": 0, "validation": 0}
        self._validation: dict[bytes, list[str]] = {}  # places of each prompt in a given validation split
        self._leaks: dict[bytes, str] = {}  # place of the same prompt in the training rows

    def assign(self, split: str, example: Example) -> str:
        """`train` or `validation`, for an example from the source split `split`."""
        key = example.prompt_key
        if self.given:
            place = f"{example.file}, {example.place}"
            if split == "validation":
                self._validation.setdefault(key, []).append(place)
            elif key in self._validation:
                self._leaks[key] = place
        elif in_validation(key, self.fraction):
            split = "validation"
        self.count[split] += 1
        return split

    def check(self) -> None:
        """Raise DataError if a prompt is in both splits, or a split is empty."""
        leaks = [
            (self._leaks[key], place)
            for key in self._validation
            if key in self._leaks
            for place in self._validation[key]
        ]
        if leaks:
            lines = [f"  {validation} has the same prompt as {train}" for train, validation in leaks[:SHOWN_MISTAKES]]
            raise DataError(
                f"{len(leaks)} validation rows leak: their prompts are also in the training rows. Remove them from one "
                "split.\n" + "\n".join(lines)
            )
        for name, count in self.count.items():
            if not count and self.given:
                raise DataError(f"the {name} split has no rows.")
            if not count:
                raise DataError(
                    f"the {name} split is empty: sequence.validation_fraction is {self.fraction}, and there are "
                    f"{sum(self.count.values())} rows. Change the fraction, or set data.validation_split."
                )
