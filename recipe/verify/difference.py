"""Finds where two files first differ, and whether their numbers agree within a tolerance.

    difference("metrics/train.json", recorded, rebuilt, 0.0)    # None if the files are equal

Tensors are compared value by value, tables row by row, and text line by line. With a tolerance, drawings are not
compared: the axis labels and coordinates of an SVG follow from numbers that the other outputs contain.
"""

import math
import re
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
HASH = re.compile(r"\b[0-9a-f]{32,64}\b")  # with a tolerance, hashes of other outputs can't be compared
DRAWING = re.compile(r"<svg\b.*?</svg>", re.DOTALL)
SHOWN = 100  # characters of a value or a line


@dataclass(frozen=True)
class Difference:
    """A difference in a file. `largest` is the largest difference of its numbers, or None if more than numbers differ.

    The difference of two numbers is a fraction of the larger one. For tensors, it is a fraction of the largest absolute
    value in the recorded tensor.
    """

    path: str
    text: str
    largest: float | None


def difference(path: str, recorded: Path, rebuilt: Path, tolerance: float) -> Difference | None:
    """Return the first difference of two files with different bytes, or None if all are within a tolerance above 0."""
    found = _difference(path, recorded, rebuilt, tolerance)
    if found is None and not tolerance:
        return Difference(path, "the values are equal, but the bytes are not", 0.0)
    return found


def _difference(path: str, recorded: Path, rebuilt: Path, tolerance: float) -> Difference | None:
    if path.endswith(".safetensors"):
        return _tensors(path, recorded, rebuilt, tolerance)
    if path.endswith(".arrow"):
        return _rows(path, recorded, rebuilt)
    first, second = recorded.read_bytes(), rebuilt.read_bytes()
    try:
        return _lines(path, first.decode("utf-8"), second.decode("utf-8"), tolerance)
    except UnicodeDecodeError:
        place = next(
            (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
        )
        return Difference(path, f"byte {place:,} differs ({len(first):,} bytes recorded, {len(second):,} here)", None)


def _tensors(path: str, recorded: Path, rebuilt: Path, tolerance: float) -> Difference | None:
    import torch
    from safetensors.torch import load_file

    first, second = load_file(recorded), load_file(rebuilt)
    if first.keys() != second.keys():
        name = sorted(first.keys() ^ second.keys())[0]
        return Difference(path, f"tensor {name} is {'missing here' if name in first else 'not recorded'}", None)
    text, largest, num_tensors = "", 0.0, 0
    for name, tensor in first.items():
        other = second[name]
        if tensor.shape != other.shape or tensor.dtype != other.dtype:
            return Difference(
                path, f"tensor {name} has the shape {tuple(tensor.shape)} and {tensor.dtype} (recorded), "
                f"{tuple(other.shape)} and {other.dtype} (here)", None,
            )  # fmt: skip
        if torch.equal(tensor, other):
            continue
        gap = (tensor.double() - other.double()).abs()
        scale = tensor.double().abs().max().item()
        most = gap.max().item()
        fraction = 0.0 if most == 0 else most / scale if math.isfinite(most) and scale else math.inf
        num_tensors += 1
        largest = max(largest, fraction)
        text = text or (
            f"{name}: {int((gap != 0).sum()):,} of {gap.numel():,} values differ, by at most {most:.2g} "
            f"(the largest value is {scale:.2g})"
        )
    if not text or largest <= tolerance:
        return None
    return Difference(path, f"{num_tensors} of {len(first)} tensors differ; first, {text}", largest)


def _rows(path: str, recorded: Path, rebuilt: Path) -> Difference | None:
    first, second = _table(recorded), _table(rebuilt)
    if first.schema != second.schema:
        return Difference(path, f"the columns are {first.column_names} (recorded), {second.column_names} (here)", None)
    for row in range(min(len(first), len(second))):
        for name in first.column_names:
            before, after = first[name][row], second[name][row]
            if not before.equals(after):
                text = f"row {row + 1}, {name}: {_short(before.as_py())} (recorded), {_short(after.as_py())} (here)"
                return Difference(path, text, None)
    if len(first) != len(second):
        return Difference(path, f"{len(first):,} rows (recorded), {len(second):,} rows (here)", None)
    return Difference(path, "the rows are equal, but the file is not", None)


def _table(path: Path) -> Any:
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        try:
            return pa.ipc.open_stream(source).read_all()
        except pa.ArrowInvalid:
            return pa.ipc.open_file(source).read_all()


def _lines(path: str, recorded: str, rebuilt: str, tolerance: float) -> Difference | None:
    """Compare two texts. Between the numbers, the texts must be equal."""
    if tolerance:
        recorded, rebuilt = (HASH.sub("(hash)", DRAWING.sub("<svg/>", text)) for text in (recorded, rebuilt))
    text, largest = "", 0.0
    for number, (before, after) in enumerate(zip_longest(recorded.split("\n"), rebuilt.split("\n")), 1):
        if before == after:
            continue
        same_words = before is not None and after is not None and NUMBER.split(before) == NUMBER.split(after)
        fractions = _fractions(NUMBER.findall(before), NUMBER.findall(after)) if same_words else [math.inf]
        largest = max(largest, *fractions)
        text = (
            text
            or f"line {number}: {_short(_around(before, after))} (recorded), {_short(_around(after, before))} (here)"
        )
        if largest == math.inf:
            break
    if not text or largest <= tolerance:
        return None
    return Difference(path, text, None if largest == math.inf else largest)


def _fractions(before: list[str], after: list[str]) -> list[float]:
    """Return the difference of each pair of numbers as a fraction of the larger one."""
    pairs = [(float(a), float(b)) for a, b in zip(before, after, strict=True)]
    return [abs(a - b) / max(abs(a), abs(b)) if a != b else 0.0 for a, b in pairs]


def _around(line: str | None, other: str | None) -> str:
    """Return the part of a line that starts shortly before the first character that differs from the other line."""
    if line is None:
        return "no such line"
    place = next((i for i, (a, b) in enumerate(zip(line, other or "", strict=False)) if a != b), 0)
    start = max(0, place - SHOWN // 2) if len(line) > SHOWN else 0
    return ("..." if start else "") + line[start:].strip()


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
