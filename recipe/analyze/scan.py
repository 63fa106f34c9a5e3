"""Scans the loaded rows for the data report.

    scan = scan_rows(data, files, meta, facts, num_first, progress)    # a Scan

The scan counts the values in each column of all readable rows, and checks the rows that the prepare stage tokenized.
"""

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from recipe.analyze.duplicates import Copies, Duplicates, Pairs
from recipe.analyze.text_checks import flaws, mask_personal_data, script
from recipe.core.services import Progress
from recipe.text.readers import read_rows
from recipe.text.rows import BadRow, Row, safe
from recipe.text.templates import make_template

KEPT_PLACES = 100  # maximum number of rows listed for each flaw
KEPT_EXAMPLES = 3  # maximum number of pairs shown for each type of duplicate
DUPLICATE_FLAWS = {
    "same": "rows that occur more than once",
    "same_question": "repeated questions with a different answer",
    "near": "near duplicates of an earlier row",
    "leaks": "validation rows that nearly match a training row",
}


@dataclass
class Flaw:
    """Counts the rows that have a possible problem, and stores the places of the first KEPT_PLACES of these rows."""

    rows: int = 0
    places: list[str] = field(default_factory=list)

    def add(self, place: str) -> None:
        """Count a row, and store its place if fewer than KEPT_PLACES places are stored."""
        self.rows += 1
        if len(self.places) < KEPT_PLACES:
            self.places.append(place)


class Columns:
    """Counts the value types and the empty values in each column. Rows are added one at a time."""

    def __init__(self) -> None:
        self.num_rows = 0
        self.types: dict[str, Counter[str]] = {}
        self.empty: Counter[str] = Counter()

    def add(self, values: dict[str, Any]) -> None:
        """Count the values of a row."""
        self.num_rows += 1
        for name, value in values.items():
            name = safe(name)
            self.types.setdefault(name, Counter())[type(value).__name__] += 1
            self.empty[name] += value is None or (isinstance(value, str | list) and not value)

    def summary(self) -> dict[str, dict[str, Any]]:
        """Return {column: {types: {type: rows}, empty: rows, missing: rows}}, sorted by first occurrence."""
        return {
            name: {
                "types": dict(sorted(types.items())),
                "empty": self.empty[name],
                "missing": self.num_rows - sum(types.values()),
            }
            for name, types in self.types.items()
        }


@dataclass(frozen=True)
class Copy:
    """A row, the row that it resembles, and their estimated similarity (0 to 1)."""

    place: str
    text: str
    other_place: str
    other_text: str
    similarity: float


@dataclass(frozen=True)
class Scan:
    """The result of a scan.

    `flaws` maps the name of each flaw to a Flaw. `examples` maps the name of each duplicate flaw to pairs of rows.
    """

    columns: Columns
    first: list[dict[str, str]]
    branches: Counter[str]
    scripts: Counter[str]
    flaws: dict[str, Flaw]
    examples: dict[str, list[Copy]]


def in_order(files: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the files in the order in which prepare reads them: validation files first, if there are any.

    The file of general rows, on which the adapter is not trained, is left out.
    """
    return sorted((file for file in files if file["split"] != "general"), key=lambda file: file["split"] == "train")


def read_all(data: Path, files: list[dict[str, Any]]) -> Iterator[Row]:
    """Yield the rows of all files, except the unreadable rows that the prepare stage quarantined."""
    for file in files:
        for row in read_rows(data / file["name"], file["name"]):
            if not isinstance(row, BadRow):
                yield row


def match_rows(rows: Iterator[Row], facts: Any) -> Iterator[tuple[Row, int]]:
    """Yield each row with its index in `facts`, a table from the prepare stage, or with -1 if the row was quarantined.

    The table lists the rows of each split in the same order as the files, so one cursor per split is enough.
    """
    is_train = facts["split"].to_numpy(zero_copy_only=False) == "train"
    cursors = [int(is_train.argmax()) if is_train.any() else len(facts), int((~is_train).argmax())]
    ends = [cursors[0] + int(is_train.sum()), cursors[1] + int((~is_train).sum())]
    names, places = facts["file"], facts["place"]
    heads = [_head(names, places, cursor, end) for cursor, end in zip(cursors, ends, strict=True)]
    for row in rows:
        index = -1
        for split in range(2):
            if heads[split] == (row.file, row.place):
                index = cursors[split]
                cursors[split] += 1
                heads[split] = _head(names, places, cursors[split], ends[split])
                break
        yield row, index


def _head(names: Any, places: Any, cursor: int, end: int) -> tuple[str, str] | None:
    return (names[cursor].as_py(), places[cursor].as_py()) if cursor < end else None


def scan_rows(
    data: Path, files: list[dict[str, Any]], meta: dict[str, Any], facts: Any, num_first: int, progress: Progress
) -> Scan:
    """Scan all rows. Then read the files again to get the texts of the duplicates that the report shows."""
    template = make_template(meta["template"], meta["columns"])
    columns, copies = Columns(), Copies()
    first: list[dict[str, str]] = []
    branches: Counter[str] = Counter()
    scripts: Counter[str] = Counter()
    flaws_by_name: dict[str, Flaw] = {}
    train_files = {file["name"] for file in files if file["split"] == "train"}
    indices = array("q")  # the index in `facts` of each row that prepare tokenized
    is_train = facts["split"].to_numpy(zero_copy_only=False) == "train"
    for row, index in progress(match_rows(read_all(data, in_order(files)), facts), "scanning rows", len(facts)):
        columns.add(row.values)
        if row.file in train_files and len(first) < num_first:
            first.append({name: mask_personal_data(text) for name, text in as_text(row.values).items()})
        if index < 0:
            continue
        question, answer, branch = template.sample(row.values)
        indices.append(index)
        branches[branch] += 1
        scripts[script(question + answer)] += 1
        copies.add(question, answer, validation=not is_train[index])
        for flaw in flaws(question, answer):
            flaws_by_name.setdefault(flaw, Flaw()).add(f"{row.file}, {row.place}")
    duplicates = copies.find()
    texts = _texts(data, files, meta, facts, _shown_rows(duplicates))
    examples = {}
    for field_name, flaw in DUPLICATE_FLAWS.items():
        pairs: Pairs = getattr(duplicates, field_name)
        if pairs.rows:
            places = [_place(facts, indices[order]) for order in pairs.rows[:KEPT_PLACES]]
            flaws_by_name[flaw] = Flaw(len(pairs.rows), places)
            examples[flaw] = [
                Copy(_place(facts, indices[order]), texts[order], _place(facts, indices[other]), texts[other], score)
                for order, other, score in islice(
                    zip(pairs.rows, pairs.earlier, pairs.similarity, strict=True), KEPT_EXAMPLES
                )
            ]
    return Scan(columns, first, branches, scripts, flaws_by_name, examples)


def as_text(values: dict[str, Any]) -> dict[str, str]:
    """Convert the column names and values of a row to text that can be encoded as UTF-8."""
    return {safe(name): safe(str(value)) for name, value in values.items()}


def _place(facts: Any, index: int) -> str:
    return f"{facts['file'][index].as_py()}, {facts['place'][index].as_py()}"


def _shown_rows(duplicates: Duplicates) -> set[int]:
    """Return the indices of the rows that the report shows in pairs of duplicates.

    Only rows that prepare tokenized are numbered.
    """
    groups: list[Pairs] = [getattr(duplicates, name) for name in DUPLICATE_FLAWS]
    return {row for pairs in groups for row in (*pairs.rows[:KEPT_EXAMPLES], *pairs.earlier[:KEPT_EXAMPLES])}


def _texts(
    data: Path, files: list[dict[str, Any]], meta: dict[str, Any], facts: Any, wanted: set[int]
) -> dict[int, str]:
    """Return {index: text} for the rows whose indices are in `wanted`.

    Only rows that prepare tokenized are numbered. Reading stops after the last wanted row.
    """
    texts: dict[int, str] = {}
    template = make_template(meta["template"], meta["columns"])
    rows = (row for row, index in match_rows(read_all(data, in_order(files)), facts) if index >= 0)
    for order, row in enumerate(rows):
        if len(texts) == len(wanted):
            break
        if order in wanted:
            question, answer, _ = template.sample(row.values)
            texts[order] = mask_personal_data(safe(f"{question}\n→ {answer}" if question else answer))
    return texts
