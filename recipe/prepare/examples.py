"""Reads rows, uses a template to convert them to examples, and assigns each example to a split."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recipe.core.errors import DataError
from recipe.prepare.unused import Unused
from recipe.text.readers import read_rows
from recipe.text.rows import BadRow, list_columns, safe
from recipe.text.templates import Template
from recipe.text.turns import Turn, text_of

SHOWN_MISTAKES = 20
SHOWN_PLACES = 3  # for a reason that many rows share


@dataclass
class Example:
    """A valid row, before tokenization."""

    turns: list[Turn]
    category: str
    file: str
    place: str
    form: str = ""  # such as `with input`; see Sample

    @property
    def num_chars(self) -> int:
        """The number of characters in all prompts and completions."""
        return sum(len(turn.prompt) + len(turn.completion) for turn in self.turns)

    @property
    def text(self) -> str:
        """The whole text of the row."""
        return text_of(self.turns)

    @property
    def prompt_key(self) -> bytes:
        """The sha256 of the prompt or, if the prompt is empty, of the last completion."""
        return hashlib.sha256((self.prompt or self.turns[-1].completion).encode()).digest()

    @property
    def prompt(self) -> str:
        """All text before the last completion.

        The first prompt alone is not sufficient, because many chats begin with the same greeting.
        """
        return text_of(self.turns[:-1]) + self.turns[-1].prompt


def in_validation(prompt_key: bytes, fraction: float) -> bool:
    """Return whether a row belongs to the validation split. The result depends only on the prompt and `fraction`."""
    return int.from_bytes(prompt_key[:8], "big") < fraction * 2**64


def read_examples(
    files: dict[str, Path], template: Template, columns: dict[str, str | None], unused: Unused
) -> Iterator[Example | BadRow]:
    """Yield each row of `files` ({name: path}) as an Example, or as a BadRow if the row is malformed.

    Columns and message keys that `template` does not use are added to `unused`. After the last row, a DataError is
    raised if a column is missing from all rows (see check_columns).
    """
    seen: dict[str, None] = {}
    for name, path in files.items():
        for row in read_rows(path, name):
            if isinstance(row, BadRow):
                yield row
                continue
            seen.update(dict.fromkeys(row.values))
            converted = template.convert(row)
            if not isinstance(converted, BadRow):
                converted = unused.add(row, converted.unused) or converted
            if isinstance(converted, BadRow):
                yield converted
                continue
            category = row.values.get(columns.get("category") or "")
            category = "" if category is None else safe(str(category))
            yield Example(converted.turns, category, row.file, row.place, converted.form)
    check_columns(template.REQUIRED, columns, set(seen), list(files))


def check_columns(required: tuple[str, ...], columns: dict[str, str | None], seen: set[str], files: list[str]) -> None:
    """Raise DataError if a column that is required or has a custom name in params.yaml is missing from all rows.

    In that case, the column name is probably misspelled. An optional column with its default name, such as Alpaca's
    `input`, may be missing.
    """
    for name, column in columns.items():
        if column is not None and column not in seen and (name != column or name in required) and seen:
            raise DataError(
                f"sequence.columns.{name} is {column!r}, but no row of {', '.join(files)} has that column. "
                f"Columns found: {list_columns(sorted(seen))}. Set this key to the column with the {name}."
            )


def report_bad_rows(bad: list[BadRow]) -> str:
    """Return a message that lists the first SHOWN_MISTAKES reasons, each with its rows, and counts the other rows."""
    by_reason: dict[str, list[BadRow]] = {}
    for row in bad:
        by_reason.setdefault(row.reason, []).append(row)
    shown = list(by_reason.items())[:SHOWN_MISTAKES]
    lines = [f"  {rows[0].file}, {rows[0].place}: {reason}{_others(rows[1:])}" for reason, rows in shown]
    if remaining := len(bad) - sum(len(rows) for _, rows in shown):
        lines.append(f"  and {remaining:,} more")
    count = "1 row is" if len(bad) == 1 else f"{len(bad)} rows are"
    return "\n".join([f"{count} malformed:", *lines])


def _others(rows: list[BadRow]) -> str:
    """Return the first places of further rows with the same reason and the number of the others, or an empty string."""
    places = [f"{row.file}, {row.place}" for row in rows[: SHOWN_PLACES - 1]]
    if remaining := len(rows) - len(places):
        places.append(f"and {remaining:,} more rows")
    return f" (also {'; '.join(places)})" if places else ""


class Splitter:
    """Assigns examples to splits, and checks that no prompt of another split is in the training rows.

    If the source has a validation split, its rows must be assigned before the training rows. Otherwise, a `fraction` of
    the prompts is held out for validation. General rows (data.general) must also be assigned before the training rows.
    """

    def __init__(self, fraction: float, *, validation_is_given: bool) -> None:
        self.fraction, self.given = fraction, validation_is_given
        self.count = {"train": 0, "validation": 0}
        self._first_key: bytes | None = None  # the key of the first row, with which all other keys are compared
        self._same_prompt = True
        # The places of each prompt in the given validation split and in the general rows.
        self._reserved: dict[str, dict[bytes, list[str]]] = {"validation": {}, "general": {}}
        # For each of these prompts that is also a prompt of the training rows, the place of a training row.
        self._leaks: dict[bytes, str] = {}

    def assign(self, split: str, example: Example) -> str:
        """Return the split of an example: `train`, `validation` or `general`. Count the example unless it is general.

        `split` is the example's split in the source.
        """
        key, place = example.prompt_key, f"{example.file}, {example.place}"
        if split == "general":
            self._reserved[split].setdefault(key, []).append(place)
            return split
        self._first_key = self._first_key or key
        self._same_prompt = self._same_prompt and key == self._first_key
        if self.given and split == "validation":
            self._reserved[split].setdefault(key, []).append(place)
        elif not self.given and in_validation(key, self.fraction):
            split = "validation"
        elif any(key in places for places in self._reserved.values()):
            self._leaks[key] = place
        self.count[split] += 1
        return split

    def check(self) -> None:
        """Raise DataError if a training row has a prompt of another split, or if a split is empty."""
        for split, places in self._reserved.items():
            leaks = [
                f"  {place} has the same prompt as {self._leaks[key]}"
                for key in places if key in self._leaks for place in places[key]
            ]  # fmt: skip
            if leaks:
                raise DataError(
                    f"found {len(leaks)} {split} rows whose prompts are also in the training rows. Remove the rows "
                    "with these prompts from one of the two splits.\n" + "\n".join(leaks[:SHOWN_MISTAKES])
                )
        for name, count in self.count.items():
            if not count and self.given:
                raise DataError(f"the {name} split has no valid rows. Check the files of this split.")
            num_rows = sum(self.count.values())
            if not count and self._same_prompt and num_rows > 1:
                raise DataError(
                    f"all {num_rows:,} rows have the same prompt, so they cannot be divided into two splits. Include "
                    "the information on which the answer depends in each prompt, use the text template, which has no "
                    "prompt, or provide validation rows with a different prompt (data.validation_split)."
                )
            if not count:
                raise DataError(
                    f"the {name} split is empty (sequence.validation_fraction: {self.fraction}, number of rows: "
                    f"{num_rows}). Change the fraction, or set data.validation_split."
                )
