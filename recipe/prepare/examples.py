"""Rows as examples: read, checked, rendered by the template, and split into training and validation."""

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
    """One kept row on its way to tokens."""

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
        """What two rows with the same question share; a row without a prompt is its own question."""
        return hashlib.sha256((self.prompt or self.turns[-1].completion).encode()).digest()

    @property
    def prompt(self) -> str:
        """All that stands before the last answer. (Chats begin alike: many open with the same greeting.)"""
        before = "".join(turn.prompt + turn.completion + (turn.end or "") for turn in self.turns[:-1])
        return before + self.turns[-1].prompt


def in_validation(prompt_key: bytes, fraction: float) -> bool:
    """Whether a row belongs to validation, by the content of its prompt alone."""
    return int.from_bytes(prompt_key[:8], "big") < fraction * 2**64


def read_examples(files: dict[str, Path], template: Template, columns: dict[str, str]) -> Iterator[Example | BadRow]:
    """The rows of some files ({name: path}), one at a time, each as an example or as why the template can't use it."""
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
    """Raise DataError for a column that stands in no row: of the template's own, or mapped by hand and misspelled.

    An optional column under its own name may be missing everywhere: Alpaca's `input`.
    """
    for name, column in columns.items():
        if column not in seen and (name != column or name in required) and seen:
            raise DataError(
                f"sequence.columns.{name} names the column {column!r}, which no row of {', '.join(files)} has; "
                f"they have {', '.join(sorted(map(repr, seen)))}. Write there the column that holds the {name}."
            )


def report_bad_rows(bad: list[BadRow]) -> str:
    """All bad rows in one message; past SHOWN_MISTAKES they are counted."""
    lines = [f"  {row.file}, {row.place}: {row.reason}" for row in bad[:SHOWN_MISTAKES]]
    if len(bad) > SHOWN_MISTAKES:
        lines.append(f"  and {len(bad) - SHOWN_MISTAKES} more")
    count = "1 row is" if len(bad) == 1 else f"{len(bad)} rows are"
    return "\n".join([f"{count} malformed:", *lines])


class Splitter:
    """Says to which split an example goes, and that no prompt stands on both.

    `fraction` of the prompts is held out where there is no validation split; a given one is read first.
    """

    def __init__(self, fraction: float, *, validation_is_given: bool) -> None:
        self.fraction, self.given = fraction, validation_is_given
        self.count = {"train": 0, "validation": 0}
        self._held: dict[bytes, list[str]] = {}  # where each prompt of a given validation split stands
        self._leaks: dict[bytes, str] = {}  # and where it stands in the training rows

    def assign(self, split: str, example: Example) -> str:
        """`train` or `validation`, for an example of a given split."""
        key = example.prompt_key
        if self.given:
            place = f"{example.file}, {example.place}"
            if split == "validation":
                self._held.setdefault(key, []).append(place)
            elif key in self._held:
                self._leaks[key] = place
        elif in_validation(key, self.fraction):
            split = "validation"
        self.count[split] += 1
        return split

    def check(self) -> None:
        """Raise DataError where a prompt stands on both splits, or a split is empty."""
        leaks = [(self._leaks[key], place) for key in self._held if key in self._leaks for place in self._held[key]]
        if leaks:
            lines = [f"  {held} has the prompt of {trained}" for trained, held in leaks[:SHOWN_MISTAKES]]
            raise DataError(
                f"{len(leaks)} validation rows leak: their prompts stand in the training rows too. Remove them from "
                "one split.\n" + "\n".join(lines)
            )
        for name, count in self.count.items():
            if not count and self.given:
                raise DataError(f"the {name} split has no rows.")
            if not count:
                raise DataError(
                    f"no row fell into {name}: sequence.validation_fraction is {self.fraction} of "
                    f"{sum(self.count.values())} rows. Choose another, or give a split."
                )
