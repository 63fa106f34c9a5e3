"""Implements `recipe show`, which prints the first fetched rows.

With --mask, it prints prepared rows instead and shows which of their tokens are in the loss.
"""

from pathlib import Path

from recipe.analyze.report import RULE, format_counts, format_row
from recipe.analyze.scan import Columns, as_text, read_all
from recipe.core.errors import DataError
from recipe.core.io import read_json
from recipe.prepare.forms import describe


def rows_text(data: Path, num_rows: int) -> str:
    """Return text that shows the total number of rows, their columns, and the first `num_rows` rows in full.

    Raises DataError if `data` contains no manifest, which means that the rows have not been fetched.
    """
    if not (data / "manifest.json").is_file():
        raise DataError(
            f"{data} has no manifest.json. Run `recipe fetch data` to fetch the rows, or `dvc repro` to run all stages."
        )
    columns = Columns()
    first: list[dict[str, str]] = []
    for row in read_all(data, read_json(data / "manifest.json")["files"]):
        columns.add(row.values)
        if len(first) < num_rows:
            first.append(as_text(row.values))
    width = max(map(len, columns.types), default=0)
    lines = [f"  {name:<{width}}  {format_counts(column['types'])}" for name, column in columns.summary().items()]
    return "\n".join([f"{columns.num_rows:,} rows", *lines, *map(format_row, first), RULE])


def mask_text(prepared: Path) -> str:
    """Return text that shows one prepared row of each form, and which of its tokens are in the loss.

    Raises DataError if the rows have not been prepared.
    """
    if not (prepared / "forms.json").is_file():
        raise DataError(
            f"{prepared} has no forms.json. Run `recipe prepare` to tokenize the rows, or `dvc repro` for all stages."
        )
    return describe(read_json(prepared / "forms.json"))
