"""Writes the report about exports: how far each exported model is from the trained adapter.

write_report(Path("reports/export"), record)    # writes FORM-PRECISION.json and index.html
"""

from pathlib import Path
from typing import Any

from recipe.core.format import format_bytes
from recipe.core.io import read_json, write_json, write_text
from recipe.export.limits import FIRST_TOKENS
from recipe.report.html import Part, page, table

HEADER = (
    "form", "precision", "merged into", "size", "equal prompts", "largest logit difference", "mean divergence",
    "equal answers", f"equal first {FIRST_TOKENS} tokens", "answers unlike the base's",
)  # fmt: skip
NOTE = (
    "Every export answers the same validation rows as the trained adapter. Prompts are equal if they have the same "
    "token ids. The divergence (Kullback-Leibler, in nats) compares the distributions of the next token. Answers are "
    "greedy."
)


def write_report(folder: Path, record: dict[str, Any]) -> None:
    """Add an export's record, and write the page with all exports of the same adapter. Others are deleted."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{record['form']}-{record['precision']}.json", record)
    records = []
    for path in sorted(folder.glob("*.json")):
        other = read_json(path)
        if other["adapter_sha256"] == record["adapter_sha256"]:
            records.append(other)
        else:
            path.unlink()
    write_text(folder / "index.html", export_page(records))


def export_page(records: list[dict[str, Any]]) -> str:
    """Return the report as HTML."""
    rows = [row for record in records for row in _rows(record)]
    count = f"{len(records)} exports are" if len(records) > 1 else "1 export is"
    lead = f"{count} the trained model, within the limits in the table."
    parts = [Part("Comparison", table([*HEADER, "limits"], rows), NOTE)]
    notes = [[record["form"], record["precision"], note] for record in records for note in record["notes"]]
    if notes:
        parts.append(Part("Notes", table(["form", "precision", "note"], notes)))
    return page("Exports", lead, parts)


def summary(record: dict[str, Any]) -> str:
    """Return a sentence for the terminal about the form that was kept."""
    parity = record["parities"][record["kept"]]
    values = dict(zip(HEADER[4:], _values(parity), strict=True))
    lines = [f"  {name}: {value}" for name, value in values.items()]
    lines += [f"  note: {note}" for note in record["notes"]]
    for weights, other in record["parities"].items():
        if weights != record["kept"]:
            lines.append(f"  mean divergence if merged into the {weights} weights: {other['mean_divergence']:.2g}")
    return "\n".join([f"compared with the trained adapter on {parity['rows']} validation rows:", *lines])


def _rows(record: dict[str, Any]) -> list[list[object]]:
    size = format_bytes(record["bytes"])
    return [
        [
            record["form"] if weights == record["kept"] else f"{record['form']} (not kept)", record["precision"],
            f"{weights} weights", size if weights == record["kept"] else "-", *_values(parity),
            record["limits"] if weights == record["kept"] else "-",
        ]
        for weights, parity in record["parities"].items()
    ]  # fmt: skip


def _values(parity: dict[str, Any]) -> list[object]:
    rows = parity["rows"]
    return [
        f"{parity['prompts_with_equal_ids']} of {rows}", f"{parity['largest_logit_difference']:.2g}",
        f"{parity['mean_divergence']:.2g}", f"{parity['equal_answers']} of {rows}",
        f"{parity['equal_first_tokens']:.1%}", f"{parity['answers_that_differ_from_base']} of {rows}",
    ]  # fmt: skip
