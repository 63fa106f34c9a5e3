"""Reads rows from JSON, JSON lines, CSV and Parquet files, one at a time, with the place where each stands.

    for row in read_rows(Path("rows.jsonl")):    # Row(values={"instruction": ...}, file="rows.jsonl", place="line 1")

A row that can't be read, or lacks what the template asks for, becomes a BadRow with its reason and is never dropped
here: what to do with it is prepare's choice.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.core.errors import DataError

MAX_BRACKETS = 500
FORMATS = (".json", ".jsonl", ".csv", ".parquet")


@dataclass(frozen=True)
class Row:
    """One row as it stands in its file. `place` is `line 12`, without lines `row 12`; both count from 1."""

    values: dict[str, Any]
    file: str
    place: str


@dataclass(frozen=True)
class BadRow:
    """A row that can't be used, and why."""

    file: str
    place: str
    reason: str
    content: str


def read_rows(path: Path, name: str = "") -> Iterator[Row | BadRow]:
    """The rows of one file in order, `name` instead of the file's in what they and errors say.

    Raises DataError where the file as a whole can't be read.
    """
    name = name or path.name
    readers = {".json": _json, ".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet}
    if path.suffix not in readers:
        raise DataError(f"{name}: rows are read from {', '.join(FORMATS)} files, not from {path.suffix!r}.")
    if path.stat().st_size == 0:
        raise DataError(f"{name} is empty.")
    return readers[path.suffix](path, name)


def pick_columns(row: Row, required: dict[str, str], optional: dict[str, str]) -> dict[str, str] | BadRow:
    """The row's values under the template's names, all of them strings, or why it is refused.

    `required` and `optional` map the template's names to the file's columns. Optional ones may be missing or null;
    required ones must hold more than white space.
    """
    picked: dict[str, str] = {}
    for name, column in {**required, **optional}.items():
        value = row.values.get(column)
        reason = None
        if value is None and name in optional:
            picked[name] = ""
            continue
        if column not in row.values:
            reason = f"the column {column!r} is missing; the row has {', '.join(map(repr, row.values)) or 'none'}"
        elif not isinstance(value, str):
            reason = f"{column!r} is {describe_type(value)}, not a string"
        elif name in required and not value.strip():
            reason = f"{column!r} is empty"
        elif not is_utf8(value):
            reason = f"{column!r} is not UTF-8"
        if reason:
            return BadRow(row.file, row.place, reason, json.dumps(row.values, default=str))
        picked[name] = str(value)
    return picked


def describe_type(value: object) -> str:
    """The type of a JSON value as a reader would say it: `a number`, `null`."""
    names = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


def is_utf8(text: str) -> bool:
    """Bytes that are not UTF-8 were read as lone surrogates, which can't be written as UTF-8 again."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8-sig", errors="surrogateescape")


def _json(path: Path, name: str) -> Iterator[Row | BadRow]:
    """A list of objects; a file that begins with an object is read as JSON lines.

    Rows are named by their lines; one that another stands before on its line, by its number.
    """
    text = _text(path)
    position = _skip(text, 0)
    if text[position : position + 1] == "{":
        yield from _json_lines(path, name)
        return
    if text[position : position + 1] != "[":
        raise DataError(f"{name}: expected a list of objects, found {text[position : position + 20]!r}.")
    decoder = json.JSONDecoder()
    begin = position = _skip(text, position + 1)
    counted, line, number, last = 0, 1, 0, 0
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{name}, line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}."
            ) from None
        except (RecursionError, ValueError) as error:
            raise DataError(f"{name}, line {line}: not readable JSON: {error}.") from None
        position, number = _skip(text, position), number + 1
        alone = line != last and (number > 1 or "\n" in text[begin : _skip(text, position + 1)])
        last = line
        yield _row(name, f"line {line}" if alone else f"row {number}", value)
        if text[position : position + 1] == ",":
            position = _skip(text, position + 1)
        elif text[position : position + 1] != "]":
            line += text.count("\n", counted, position)
            found = repr(text[position : position + 20]) if position < len(text) else "the end of the file"
            raise DataError(f"{name}, line {line}: not valid JSON: expected ',' or ']', found {found}.")


def _skip(text: str, position: int) -> int:
    """The first position from `position` on that is no JSON white space."""
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _json_lines(path: Path, name: str) -> Iterator[Row | BadRow]:
    """An object a line; blank lines are skipped."""
    import orjson

    with path.open("rb") as file:
        for number, data in enumerate(file, 1):
            # What orjson refuses, such as NaN and bytes that are no UTF-8, json explains. json alone refuses what is
            # nested too deep for Python to write it down again.
            if data.count(b"[") + data.count(b"{") <= MAX_BRACKETS:
                try:
                    value = orjson.loads(data)
                except orjson.JSONDecodeError:
                    pass
                else:
                    yield _row(name, f"line {number}", value)
                    continue
            text = data.decode("utf-8-sig" if number == 1 else "utf-8", errors="surrogateescape").strip()
            if not text:
                continue
            try:
                value = json.loads(text)
            except json.JSONDecodeError as error:
                reason = f"not valid JSON: {error.msg} at column {error.colno}"
                yield BadRow(name, f"line {number}", reason, safe(text))
                continue
            except (RecursionError, ValueError) as error:  # nested too deep, or a number of thousands of digits
                yield BadRow(name, f"line {number}", f"not readable JSON: {error}", safe(text))
                continue
            yield _row(name, f"line {number}", value)


def _csv(path: Path, name: str) -> Iterator[Row | BadRow]:
    """RFC 4180 with a header; a quoted value may run over lines, and the row is named by its first."""
    csv.field_size_limit(1 << 30)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            if not header:
                raise DataError(f"{name} has no header.")
            doubled = sorted({one for one in header if header.count(one) > 1})
            if doubled:
                raise DataError(f"{name}, line 1: the columns {doubled} stand twice.")
            begin = reader.line_num + 1
            for values in reader:
                place, begin = f"line {begin}", reader.line_num + 1
                if not values:
                    continue
                if len(values) == len(header):
                    yield Row(dict(zip(header, values, strict=True)), name, place)
                else:
                    reason = f"{len(values)} values for {len(header)} columns"
                    yield BadRow(name, place, reason, safe(",".join(values)))
        except csv.Error as error:
            raise DataError(f"{name}, line {reader.line_num}: not valid CSV: {error}.") from None


def _parquet(path: Path, name: str) -> Iterator[Row | BadRow]:
    """Rows in batches, so that memory does not grow with the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        number = 0
        for batch in pq.ParquetFile(path).iter_batches():
            for values in batch.to_pylist():
                number += 1
                yield Row(values, name, f"row {number}")
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{name}: not a readable Parquet file: {error}.") from None


def _row(file: str, place: str, value: object) -> Row | BadRow:
    if isinstance(value, dict):
        return Row(value, file, place)
    return BadRow(file, place, f"{describe_type(value)}, not an object with columns", safe(json.dumps(value)))


def safe(text: str) -> str:
    """Text that can be written as UTF-8 whatever bytes it came from."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")
