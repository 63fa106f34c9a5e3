"""Builds the report about the training: the loss and the gradient norm of each step, the spikes, and the hardest rows.

write_report(folder, trainer, Path("data/prepared/rows.arrow"))
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recipe.core.io import write_text
from recipe.report.html import Part, figure, page, table
from recipe.report.svg import SMOOTHED, step_curve
from recipe.train.ledger import row_names, row_texts, worst_rows

if TYPE_CHECKING:
    from recipe.train.sft import PackedTrainer

WINDOW = 50  # a step is compared with this many steps before it
FEWEST_BEFORE = 10
# The modified z-score of Iglewicz and Hoaglin 1993, "How to Detect and Handle Outliers". They suggest 3.5 for normally
# distributed values. Losses and gradient norms of batches have longer tails, so the threshold is higher.
THRESHOLD = 7.0
SHOWN_SPIKES = 10
SHOWN_ROWS = 20
ROWS_PER_SPIKE = 3
MEASURES = {"loss": "loss", "grad_norm": "gradient norm"}


def write_report(folder: Path, trainer: "PackedTrainer", rows_file: Path) -> None:
    """Write index.html and its charts to `folder`. `rows_file` is rows.arrow of the prepared rows."""
    records = [json.loads(line) for line in trainer.ledger.lines]
    spikes = spikes_of(records)
    rows, charts = rows_to_name(records, spikes), curves(records, spikes)
    names = dict(zip(rows, row_names(rows_file, rows), strict=True))
    texts = dict(zip(rows, row_texts(trainer.train_dataset, rows, trainer.processing_class), strict=True))
    write_text(folder / "index.html", training_page(records, spikes, charts, names, texts))
    for name, chart in charts.items():
        write_text(folder / f"{name}.svg", chart)


def find_spikes(values: list[float]) -> list[int]:
    """Return the indices of values that are far above the values before them.

    A value is a spike if its modified z-score among the last WINDOW values is above THRESHOLD, and if it exceeds their
    maximum. Values with fewer than FEWEST_BEFORE values before them are never spikes.
    """
    spikes = []
    for index in range(FEWEST_BEFORE, len(values)):
        before = np.array(values[max(0, index - WINDOW) : index])
        median = np.median(before)
        deviation = np.median(np.abs(before - median))
        if values[index] > before.max() and 0.6745 * (values[index] - median) > THRESHOLD * deviation:
            spikes.append(index)
    return spikes


def spikes_of(records: list[dict[str, Any]]) -> dict[int, list[str]]:
    """Return {index of the record: names of the measures that have a spike in this step}."""
    spikes: dict[int, list[str]] = {}
    for key, name in MEASURES.items():
        for index in find_spikes([record[key] for record in records]):
            spikes.setdefault(index, []).append(name)
    return dict(sorted(spikes.items()))


def last_losses(records: list[dict[str, Any]]) -> list[tuple[int, float, int]]:
    """Return (row, loss, step) for each row in its last step, with the highest loss first.

    Includes only rows in the second half of the steps, because every row is hard for a model that has not learned yet.
    The list is empty if the losses of the rows are unknown.
    """
    late = records[len(records) // 2 :]
    last = {row: (loss, record["step"]) for record in late for row, loss, _ in record["rows"] if loss is not None}
    return sorted(((row, loss, step) for row, (loss, step) in last.items()), key=lambda item: (-item[1], item[0]))


def rows_to_name(records: list[dict[str, Any]], spikes: dict[int, list[str]]) -> list[int]:
    """Return the numbers of the rows that the report names."""
    named = {row for row, _, _ in last_losses(records)[:SHOWN_ROWS]}
    for index in list(spikes)[:SHOWN_SPIKES]:
        named |= {row for row, *_ in worst_rows(records[index]["rows"], ROWS_PER_SPIKE)}
    return sorted(named)


def curves(records: list[dict[str, Any]], spikes: dict[int, list[str]]) -> dict[str, str]:
    """Return an SVG chart of each measure by step, with its spikes marked."""
    steps = [record["step"] for record in records]
    return {
        key: step_curve(
            steps, [record[key] for record in records], name,
            [index for index, names in spikes.items() if name in names],
        )
        for key, name in MEASURES.items()
    }  # fmt: skip


def headline(records: list[dict[str, Any]], spikes: dict[int, list[str]]) -> str:
    """Return a sentence with the number of steps and of spikes."""
    count = "no spikes" if not spikes else "1 spike" if len(spikes) == 1 else f"{len(spikes)} spikes"
    return f"{len(records):,} optimizer steps, with {count} of the loss or the gradient norm."


def training_page(
    records: list[dict[str, Any]], spikes: dict[int, list[str]], charts: Mapping[str, str],
    names: Mapping[int, str], texts: Mapping[int, str],
) -> str:  # fmt: skip
    """Return the report as HTML. `names` and `texts` contain the places and the texts of the rows of `rows_to_name`."""
    parts = [
        Part(
            f"{MEASURES[key].capitalize()} by step",
            figure(chart, f"{MEASURES[key]} by step"),
            f"The line is the mean of the last {SMOOTHED} steps.",
        )
        for key, chart in charts.items()
    ]
    if spikes:
        parts.append(Part("Spikes", _spike_table(records, spikes, names, texts), _spike_note(spikes)))
    hardest = last_losses(records)[:SHOWN_ROWS]
    if hardest:
        rows = [[names[row], step, f"{loss:.3f}", texts[row]] for row, loss, step in hardest]
        note = (
            "The loss of each row in its last step, for the rows in the second half of the training. Rows at the top "
            "are often wrong, unusual, or in another language than the others."
        )
        parts.append(Part("The hardest rows", table(["row", "step", "loss", "text"], rows), note))
    return page("Training", headline(records, spikes), parts)


def _spike_note(spikes: dict[int, list[str]]) -> str:
    shown = f" The first {SHOWN_SPIKES} are shown." if len(spikes) > SHOWN_SPIKES else ""
    return (
        f"A step is a spike if its value is far above those of the {WINDOW} steps before (a modified z-score above "
        f"{THRESHOLD:g}).{shown} The command recipe ledger --step N lists all rows of a step."
    )


def _spike_table(
    records: list[dict[str, Any]], spikes: dict[int, list[str]], names: Mapping[int, str], texts: Mapping[int, str]
) -> Any:
    rows = []
    for index in list(spikes)[:SHOWN_SPIKES]:
        record = records[index]
        hardest = worst_rows(record["rows"], ROWS_PER_SPIKE)
        what = " and ".join(spikes[index])
        described = "\n".join(f"{names[row]} (loss {loss:.3f}): {texts[row]}" for row, loss, _ in hardest)
        values = [record["step"], what, f"{record['loss']:.3f}", f"{record['grad_norm']:.3f}"]
        rows.append([*values, described or f"{len(record['rows'])} rows"])
    return table(["step", "spike of the", "loss", "gradient norm", "rows with the highest loss"], rows)
