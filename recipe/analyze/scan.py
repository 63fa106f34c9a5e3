"""One pass over the rows as they were loaded: their columns, and what stands in those that prepare could use.

scan = scan_rows(data, manifest, meta, facts, progress)    # a Scan
"""

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from recipe.analyze.duplicates import Copies, Found, Pairs
from recipe.analyze.text_checks import flaws, mask_personal_data, script
from recipe.core.services import Progress
from recipe.text.readers import BadRow, Row, read_rows, safe
from recipe.text.templates import make_template

KEPT_PLACES = 100  # of the rows with a flaw, those that are named
KEPT_EXAMPLES = 3  # pairs of copies that are shown in full
SEEN_AS = {
    "same": "rows that stand twice",
    "same_question": "questions with another answer earlier",
    "near": "rows that are nearly an earlier one",
    "leaks": "validation rows that are nearly in training",
}


@dataclass
class Flaw:
    """Rows that look guilty of one thing: how many, and where the first stand."""

    rows: int = 0
    places: list[str] = field(default_factory=list)

    def add(self, place: str) -> None:
        """Count a row."""
        self.rows += 1
        if len(self.places) < KEPT_PLACES:
            self.places.append(place)


class Columns:
    """What each column holds, row by row: types, and how many values are empty."""

    def __init__(self) -> None:
        self.num_rows = 0
        self.types: dict[str, Counter[str]] = {}
        self.empty: Counter[str] = Counter()

    def add(self, values: dict[str, Any]) -> None:
        """Count a row."""
        self.num_rows += 1
        for name, value in values.items():
            name = safe(name)
            self.types.setdefault(name, Counter())[type(value).__name__] += 1
            self.empty[name] += value is None or (isinstance(value, str | list) and not value)

    def summary(self) -> dict[str, dict[str, Any]]:
        """{column: {types: {type: rows}, empty: rows, missing: rows}}, in the order in which they first stood."""
        return {
            name: {
                "types": dict(sorted(kinds.items())),
                "empty": self.empty[name],
                "missing": self.num_rows - sum(kinds.values()),
            }
            for name, kinds in self.types.items()
        }


@dataclass(frozen=True)
class Copy:
    """A row beside the one that it looks like, and how alike they are (0 to 1, estimated)."""

    place: str
    text: str
    other_place: str
    other_text: str
    similarity: float


@dataclass(frozen=True)
class Scan:
    """What the pass found. `flaws` has a Flaw by name, `examples` some copies by the name that they have there."""

    columns: Columns
    first: list[dict[str, str]]
    branches: Counter[str]
    scripts: Counter[str]
    flaws: dict[str, Flaw]
    examples: dict[str, list[Copy]]


def in_order(files: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The files in the order in which prepare reads them: a given validation split first."""
    return sorted(files, key=lambda file: file["split"] == "train")


def read_all(data: Path, files: list[dict[str, Any]]) -> Iterator[Row]:
    """The rows of all files that are objects; the others stand in the quarantine."""
    for file in files:
        for row in read_rows(data / file["name"], file["name"]):
            if not isinstance(row, BadRow):
                yield row


def match_rows(rows: Iterator[Row], facts: Any) -> Iterator[tuple[Row, int]]:
    """Each row with its number in prepare's table of facts, or -1 where prepare could not use it.

    The table has the rows of each side in the order of the files: two fingers walk along it.
    """
    is_train = facts["split"].to_numpy(zero_copy_only=False) == "train"
    begins = [int(is_train.argmax()) if is_train.any() else len(facts), int((~is_train).argmax())]
    ends = [begins[0] + int(is_train.sum()), begins[1] + int((~is_train).sum())]
    names, places = facts["file"], facts["place"]
    heads = [_head(names, places, at, end) for at, end in zip(begins, ends, strict=True)]
    for row in rows:
        found = -1
        for side in range(2):
            if heads[side] == (row.file, row.place):
                found = begins[side]
                begins[side] += 1
                heads[side] = _head(names, places, begins[side], ends[side])
                break
        yield row, found


def _head(names: Any, places: Any, at: int, end: int) -> tuple[str, str] | None:
    return (names[at].as_py(), places[at].as_py()) if at < end else None


def scan_rows(
    data: Path, files: list[dict[str, Any]], meta: dict[str, Any], facts: Any, num_first: int, progress: Progress
) -> Scan:
    """Look at every row once, and again at those that are shown as copies."""
    template = make_template(meta["template"], meta["columns"])
    columns, copies = Columns(), Copies()
    first: list[dict[str, str]] = []
    branches: Counter[str] = Counter()
    scripts: Counter[str] = Counter()
    found: dict[str, Flaw] = {}
    trained_on = {file["name"] for file in files if file["split"] == "train"}
    numbers = array("q")  # of each row that was used, where it stands in the facts
    is_train = facts["split"].to_numpy(zero_copy_only=False) == "train"
    for row, number in progress(match_rows(read_all(data, in_order(files)), facts), "looking at rows", len(facts)):
        columns.add(row.values)
        if row.file in trained_on and len(first) < num_first:
            first.append({name: mask_personal_data(text) for name, text in as_text(row.values).items()})
        if number < 0:
            continue
        question, answer, form = template.sample(row.values)
        numbers.append(number)
        branches[form] += 1
        scripts[script(question + answer)] += 1
        copies.add(question, answer, validation=not is_train[number])
        for flaw in flaws(question, answer):
            found.setdefault(flaw, Flaw()).add(f"{row.file}, {row.place}")
    pairs = copies.find()
    texts = _texts(data, files, meta, facts, _shown(pairs))
    examples = {}
    for name, called in SEEN_AS.items():
        some: Pairs = getattr(pairs, name)
        if some.rows:
            found[called] = Flaw(len(some.rows), [_place(facts, numbers[one]) for one in some.rows[:KEPT_PLACES]])
            examples[called] = [
                Copy(_place(facts, numbers[one]), texts[one], _place(facts, numbers[other]), texts[other], alike)
                for one, other, alike in islice(
                    zip(some.rows, some.earlier, some.similarity, strict=True), KEPT_EXAMPLES
                )
            ]
    return Scan(columns, first, branches, scripts, found, examples)


def as_text(values: dict[str, Any]) -> dict[str, str]:
    """A row's values as text that can be written, whatever it holds."""
    return {safe(name): safe(str(value)) for name, value in values.items()}


def _place(facts: Any, number: int) -> str:
    return f"{facts['file'][number].as_py()}, {facts['place'][number].as_py()}"


def _shown(found: Found) -> set[int]:
    """The rows whose texts are shown."""
    pairs = [getattr(found, name) for name in SEEN_AS]
    return {row for some in pairs for row in (*some.rows[:KEPT_EXAMPLES], *some.earlier[:KEPT_EXAMPLES])}


def _texts(
    data: Path, files: list[dict[str, Any]], meta: dict[str, Any], facts: Any, wanted: set[int]
) -> dict[int, str]:
    """The texts of some of the rows that were used, by their order; rows past the last of them are not read."""
    texts: dict[int, str] = {}
    template = make_template(meta["template"], meta["columns"])
    rows = (row for row, number in match_rows(read_all(data, in_order(files)), facts) if number >= 0)
    for order, row in enumerate(rows):
        if len(texts) == len(wanted):
            break
        if order in wanted:
            question, answer, _ = template.sample(row.values)
            texts[order] = mask_personal_data(safe(f"{question}\n→ {answer}" if question else answer))
    return texts
