"""Turns rows into examples: reads and checks the rows, applies the template, and assigns each example to a split."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recipe.core.errors import DataError
from recipe.prepare.unused import Unused
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
        """The number of characters in all prompts and completions."""
        return sum(len(turn.prompt) + len(turn.completion) for turn in self.turns)

    @property
    def prompt_key(self) -> bytes:
        """A digest shared by rows with the same prompt; for a row without a prompt, a digest of its completion."""
        return hashlib.sha256((self.prompt or self.turns[-1].completion).encode()).digest()

    @property
    def prompt(self) -> str:
        """All text before the last answer. The first prompt is not enough: many chats open with the same greeting."""
        before = "".join(turn.prompt + turn.completion + (turn.end or "") for turn in self.turns[:-1])
        return before + self.turns[-1].prompt


def in_validation(prompt_key: bytes, fraction: float) -> bool:
    """Whether a row belongs to the validation split. This depends only on the row's prompt and `fraction`."""
    return int.from_bytes(prompt_key[:8], "big") < fraction * 2**64


def read_examples(
    files: dict[str, Path], template: Template, columns: dict[str, str | None], unused: Unused
) -> Iterator[Example | BadRow]:
    """Yield each row of the files ({name: path}) as an Example, or as a BadRow if it is malformed.

    What the rows contain and `template` does not use is added to `unused`. Raises DataError at the end if a column is
    missing from all rows (see check_columns).
    """
    seen: dict[str, None] = {}
    for name, path in files.items():
        for row in read_rows(path, name):
            if isinstance(row, BadRow):
                yield row
                continue
            seen.update(dict.fromkeys(row.values))
            turns = template.turns(row)
            if not isinstance(turns, BadRow):
                turns = unused.add(row, template.unused_keys(row)) or turns
            if isinstance(turns, BadRow):
                yield turns
                continue
            category = row.values.get(columns.get("category") or "")
            yield Example(turns, "" if category is None else safe(str(category)), row.file, row.place)
    check_columns(template.REQUIRED, columns, set(seen), list(files))


def check_columns(required: tuple[str, ...], columns: dict[str, str | None], seen: set[str], files: list[str]) -> None:
    """Raise DataError if a column is missing from all rows, but required or renamed in params.yaml (probably a typo).

    An optional column with its default name, such as Alpaca's `input`, may be missing.
    """
    for name, column in columns.items():
        if column is not None and column not in seen and (name != column or name in required) and seen:
            raise DataError(
                f"sequence.columns.{name} is {column!r}, but no row of {', '.join(files)} has that column; "
                f"the rows have {', '.join(sorted(map(repr, seen)))}. Set it to the column that contains the {name}."
            )


def report_bad_rows(bad: list[BadRow]) -> str:
    """A message about all bad rows: a line for each of the first SHOWN_MISTAKES rows, and the number of the rest."""
    lines = [f"  {row.file}, {row.place}: {row.reason}" for row in bad[:SHOWN_MISTAKES]]
    if len(bad) > SHOWN_MISTAKES:
        lines.append(f"  and {len(bad) - SHOWN_MISTAKES} more")
    count = "1 row is" if len(bad) == 1 else f"{len(bad)} rows are"
    return "\n".join([f"{count} malformed:", *lines])


class Splitter:
    """Assigns examples to splits, and checks that no prompt is in both splits.

    If the source has a validation split, its rows must be assigned before the training rows. Otherwise, a `fraction` of
    the prompts is held out for validation.
    """

    def __init__(self, fraction: float, *, validation_is_given: bool) -> None:
        self.fraction, self.given = fraction, validation_is_given
        self.count = {"train": 0, "validation": 0}
        self._first_key: bytes | None = None  # the first prompt, to see whether all rows have the same one
        self._same_prompt = True
        self._validation: dict[bytes, list[str]] = {}  # where each prompt occurs in the source's validation split
        self._leaks: dict[bytes, str] = {}  # where such a prompt also occurs in the training rows

    def assign(self, split: str, example: Example) -> str:
        """Assign an example from `split` in the source; returns `train` or `validation`."""
        key = example.prompt_key
        self._first_key = self._first_key or key
        self._same_prompt = self._same_prompt and key == self._first_key
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
            num_rows = sum(self.count.values())
            if not count and self._same_prompt and num_rows > 1:
                raise DataError(
                    f"all {num_rows:,} rows have the same prompt, and rows with equal prompts belong in one split. "
                    "Add to each prompt what its answer depends on; or use the template text, which has no prompt; or "
                    "provide validation rows with a different prompt (data.validation_split)."
                )
            if not count:
                raise DataError(
                    f"the {name} split is empty: sequence.validation_fraction is {self.fraction}, and there are "
                    f"{num_rows} rows. Change the fraction, or set data.validation_split."
                )
