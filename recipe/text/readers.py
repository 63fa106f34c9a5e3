"""Reads rows one at a time from JSON, JSON Lines, CSV and Parquet files, and records each row's place in its file.

    for row in read_rows(Path("rows.jsonl")):    # Row(values={"instruction": ...}, file="rows.jsonl", place="line 1")

A row that cannot be read becomes a BadRow, which contains the reason. This module never drops a row. The prepare stage
decides what happens to bad rows.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from recipe.core.errors import DataError
from recipe.core.format import first_line
from recipe.text.file_shape import describe_bytes, describe_lines, describe_object, separator
from recipe.text.rows import BadRow, Row, describe_type, safe

MAX_BRACKETS = 500
HEAD_BYTES = 4096
FORMATS = (".json", ".jsonl", ".csv", ".parquet")


def read_rows(path: Path, name: str = "") -> Iterator[Row | BadRow]:
    """Return an iterator over the rows of a file.

    If `name` is given, rows and error messages contain `name` instead of the file's name. Raises DataError if the file
    as a whole cannot be read.
    """
    name = name or path.name
    readers = {".json": _json, ".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet}
    if path.suffix not in readers:
        raise DataError(f"{name}: rows can be read from {', '.join(FORMATS)} files, not from {path.suffix!r} files.")
    if path.stat().st_size == 0:
        raise DataError(f"{name} is empty.")
    with path.open("rb") as file:
        _reject(name, describe_bytes(file.read(HEAD_BYTES), path.suffix))
    return readers[path.suffix](path, name)


def _reject(name: str, description: str | None) -> None:
    """Raise DataError with the description of a file, unless the description is None."""
    if description:
        raise DataError(f"{name} {description}.")


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8-sig", errors="surrogateescape")


def _json(path: Path, name: str) -> Iterator[Row | BadRow]:
    """Yield the rows of a JSON list of objects. A file that begins with an object is read as JSON Lines instead.

    The `place` of a row is its line number if no earlier row begins on the same line. Otherwise, it is the row number.
    The `place` of the first row is also a row number if the second row begins on the same line.
    """
    text = _text(path)
    position = _skip(text, 0)
    if text[position : position + 1] == "{":
        _reject(name, _describe_single_object(text[position:]))
        yield from _json_lines(path, name)
        return
    if text[position : position + 1] != "[":
        line = text.count("\n", 0, position) + 1
        raise DataError(f"{name}, line {line}: expected a list of objects, found {text[position : position + 20]!r}.")
    decoder = json.JSONDecoder()
    begin = position = _skip(text, position + 1)
    counted, line, number, last_line = 0, 1, 0, 0
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
        has_own_line = line != last_line and (number > 1 or "\n" in text[begin : _skip(text, position + 1)])
        last_line = line
        yield _row(name, f"line {line}" if has_own_line else f"row {number}", value)
        if text[position : position + 1] == ",":
            position = _skip(text, position + 1)
        elif text[position : position + 1] != "]":
            line += text.count("\n", counted, position)
            actual = repr(text[position : position + 20]) if position < len(text) else "the end of the file"
            raise DataError(f"{name}, line {line}: not valid JSON: expected ',' or ']', found {actual}.")


def _describe_single_object(text: str) -> str | None:
    """Return a description of a file that consists of a single JSON object, or None.

    The result is None if the object can be a row, or if the text is not a single JSON object.
    """
    try:
        value = json.loads(text)
    except (RecursionError, ValueError):  # _json_lines handles several objects and invalid JSON
        return None
    return describe_object(value) if isinstance(value, dict) else None


def _skip(text: str, position: int) -> int:
    """Return the first position at or after `position` that is not JSON whitespace."""
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _json_lines(path: Path, name: str) -> Iterator[Row | BadRow]:
    """Yield the rows of a file with one JSON object per line. Blank lines are skipped."""
    import orjson

    with path.open("rb") as file:
        head = [file.readline(), file.readline()]
        lines = [line.decode("utf-8-sig", errors="surrogateescape") for line in head]
        _reject(name, describe_lines(*lines) or (None if lines[1].strip() else _describe_single_object(lines[0])))
        file.seek(0)
        for number, data in enumerate(file, 1):
            # A line that orjson rejects (for example, because of NaN or invalid UTF-8) is passed to Python's json
            # module, which either reads the line or reports what is wrong with it. A line with many brackets is not
            # passed to orjson, because orjson accepts values that are nested too deeply for the json module to write.
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
            except (RecursionError, ValueError) as error:  # nested too deeply, or a number with thousands of digits
                yield BadRow(name, f"line {number}", f"not readable JSON: {error}", safe(text))
                continue
            yield _row(name, f"line {number}", value)


def _csv(path: Path, name: str) -> Iterator[Row | BadRow]:
    """Yield the rows of a CSV file (RFC 4180) with a header.

    Quoted values may span several lines. The `place` of a row is its first line.
    """
    csv.field_size_limit(1 << 30)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            while header and not header[-1].strip():  # spreadsheets write empty columns at the end
                header.pop()
            if not header:
                raise DataError(f"{name} has no header. Write the names of the columns on the first line.")
            if mark := separator(header):
                raise DataError(
                    f"{name} seems to have columns separated by {mark!r}. Convert it to commas with `python -c "
                    f'"import csv, sys; csv.writer(sys.stdout).writerows(csv.reader(sys.stdin, delimiter={mark!r}))" '
                    "< FILE > NEW`."
                )
            duplicates = sorted({column for column in header if header.count(column) > 1})
            if duplicates:
                raise DataError(f"{name}, line 1: duplicate columns {duplicates}. Each column needs a different name.")
            begin = reader.line_num + 1
            for values in reader:
                place, begin = f"line {begin}", reader.line_num + 1
                if not values:
                    continue
                extra = next((index for index in range(len(header), len(values)) if values[index].strip()), None)
                if extra is None and len(values) >= len(header):
                    yield Row(dict(zip(header, values, strict=False)), name, place)
                else:
                    reason = (
                        f"expected {len(header)} values, found {len(values)}"
                        if extra is None
                        else f"value {extra + 1} ({safe(values[extra])!r}) is in a column without a name"
                    )
                    yield BadRow(name, place, reason, safe(",".join(values)))
        except csv.Error as error:
            raise DataError(f"{name}, line {reader.line_num}: not valid CSV: {error}.") from None


def _parquet(path: Path, name: str) -> Iterator[Row | BadRow]:
    """Yield the rows of a Parquet file. The file is read in batches to limit memory use."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        number = 0
        for batch in pq.ParquetFile(path).iter_batches():
            for values in batch.to_pylist():
                number += 1
                yield Row(values, name, f"row {number}")
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{name}: not a readable Parquet file: {first_line(error).rstrip('.')}.") from None


def _row(file: str, place: str, value: object) -> Row | BadRow:
    if isinstance(value, dict):
        return Row(value, file, place)
    return BadRow(file, place, f"the row is {describe_type(value)}, not an object", safe(json.dumps(value)))
