"""Defines the rows of a file, and checks the values in their columns.

pick_columns(row, {"instruction": "question"}, {"input": "context"})
# {"instruction": "...", "input": ""}, or a BadRow with the reason
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from recipe.core.format import shorten

COLUMNS_CHARS = 1000
NOT_UTF8 = "is not UTF-8. If the file is in Latin-1, convert it with `iconv -f LATIN1 -t UTF-8 FILE > NEW`"
MISSING = "nan"  # the text that pandas creates when it converts a missing value to a string


@dataclass(frozen=True)
class Row:
    """A row of a file.

    `place` is the line on which the row begins (`line 12`), or the number of the row (`row 12`) if the line does not
    identify the row. Both numbers start at 1.
    """

    values: dict[str, Any]
    file: str
    place: str


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, and the reason."""

    file: str
    place: str
    reason: str
    content: str


def pick_columns(row: Row, required: dict[str, str], optional: dict[str, str]) -> dict[str, str] | BadRow:
    """Return the row's values as strings, keyed by the template's column names, or a BadRow with the reason.

    `required` and `optional` map the template's column names to the file's column names. An optional value that is
    missing, null, NaN or blank becomes an empty string. A required value must be neither blank nor the text `nan`.
    """
    picked: dict[str, str] = {}
    for name, column in {**required, **optional}.items():
        value = row.values.get(column)
        reason = None
        if name in optional and is_missing(value):
            picked[name] = ""
            continue
        if column not in row.values:
            reason = f"the column {column!r} is missing. Columns found: {list_columns(row.values)}"
        elif not isinstance(value, str):
            reason = f"{column!r} is {describe_type(value)}, not a string"
        elif name in required and not value.strip():
            reason = f"{column!r} is empty"
        elif name in required and value == MISSING:
            reason = f"{column!r} contains only {MISSING!r}, which represents a missing value"
        elif not is_utf8(value):
            reason = f"{column!r} {NOT_UTF8}"
        if reason:
            return BadRow(row.file, row.place, reason, json.dumps(row.values, default=str))
        picked[name] = str(value)
    return picked


def list_columns(names: Iterable[str]) -> str:
    """Return the names of columns for a message, shortened, because a damaged file can have names of any length."""
    return shorten(", ".join(map(repr, names)), COLUMNS_CHARS) or "none"


def is_missing(value: object) -> bool:
    """Return whether a value in an optional column is null, blank text, or NaN (as a number or as the text `nan`)."""
    return value is None or value != value or (isinstance(value, str) and (not value.strip() or value == MISSING))


def describe_type(value: object) -> str:
    """Return the type of a JSON value in plain words, such as `a number` or `null`."""
    if value != value:
        return "NaN (a missing value)"
    names = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


def is_utf8(text: str) -> bool:
    """Return whether the text can be encoded as UTF-8.

    When a file is read, invalid bytes become lone surrogates, which cannot be encoded.
    """
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def safe(text: str) -> str:
    """Return the text with lone surrogates escaped, so that the result can be encoded as UTF-8."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")
