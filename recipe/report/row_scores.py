"""Writes and reads rows.csv, which contains the scores of each row, so that two adapters can be compared row by row.

write_row_scores(path, {"validation": rows, "general": general_rows})
read_row_scores(path)["validation"]    # a list of ScoredRow
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from recipe.core.errors import DataError
from recipe.core.io import reading, write_text
from recipe.report.comparison import ScoredRow

FILE = "rows.csv"
GENERAL = "general"  # the set of rows that the training does not target (data.general)
PAIRS = ("loss", "right", "matches", "chrf")
COLUMNS = (
    "set",
    "category",
    "length",
    "loss_tokens",
    *(f"{who}_{what}" for what in PAIRS for who in ("base", "adapter")),
)
RowSets = dict[str, list[ScoredRow]]


def write_row_scores(path: Path, sets: Mapping[str, Sequence[ScoredRow]]) -> None:
    """Write a line for each row of each set. Losses are sums over the row's loss positions, in nats.

    The columns of answers are empty for a row without an answer.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)  # also quotes a carriage return
    writer.writerow(COLUMNS)
    for name, rows in sets.items():
        for row in rows:
            matches, chrf = row.matches or ("", ""), row.chrf or ("", "")
            writer.writerow(
                [name, row.category, row.length, row.loss_tokens, *row.losses, *row.right,
                 *(int(match) if match != "" else "" for match in matches), *chrf]
            )  # fmt: skip
    write_text(path, text.getvalue())


def read_row_scores(path: Path) -> RowSets:
    """Return the rows of each set, in the order of the file. Raises DataError if the file is missing or damaged."""
    sets: RowSets = {}
    with reading(path, TypeError, KeyError, csv.Error), path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file, strict=True):
            sets.setdefault(line["set"], []).append(_row(line))
    if not sets:
        raise DataError(f"{path} contains no rows. Run `dvc repro`.")
    return sets


def _row(line: dict[str, str]) -> ScoredRow:
    def pair(name: str) -> tuple[float, float]:
        return float(line[f"base_{name}"]), float(line[f"adapter_{name}"])

    right, has_answer = pair("right"), line["base_matches"] != ""
    matches = pair("matches") if has_answer else (0.0, 0.0)
    return ScoredRow(
        category=line["category"], length=int(line["length"]), loss_tokens=int(line["loss_tokens"]),
        losses=pair("loss"), right=(int(right[0]), int(right[1])),
        matches=(bool(matches[0]), bool(matches[1])) if has_answer else None,
        chrf=pair("chrf") if has_answer else None,
    )  # fmt: skip
