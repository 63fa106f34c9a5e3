"""Implements `recipe ledger`, which prints what each optimizer step of the last training was computed from."""

import json
from typing import Any

from recipe.core.errors import ParamsError
from recipe.core.io import check_count, read_json, read_json_lines
from recipe.core.paths import Paths
from recipe.train.ledger import LEDGER, row_names, worst_rows
from recipe.train.report import headline, spikes_of


def recorded_lines(paths: Paths) -> list[str]:
    """Return the records of the last training, one per step, as lines of JSON.

    Raises MachineError if there is no training, and DataError if the file is damaged.
    """
    records = read_json_lines(paths.training / LEDGER)
    check_count(paths.training / LEDGER, len(records), read_json(paths.train_metrics)["steps"], "steps")
    return [json.dumps(record) for record in records]


def check_step(step: int, num_steps: int) -> None:
    """Raise ParamsError if the last training has no step with this number."""
    if step > num_steps:
        raise ParamsError(f"there is no step {step:,}. The last training has {num_steps:,} steps.")


def steps_text(paths: Paths) -> str:
    """Return a table of all steps, with the spikes marked."""
    records = [json.loads(line) for line in recorded_lines(paths)]
    spikes = spikes_of(records)
    lines = [f"{'step':>7}{'loss':>10}{'gradient norm':>15}{'learning rate':>15}{'rows':>6}"]
    for index, record in enumerate(records):
        mark = f"  spike of the {' and '.join(spikes[index])}" if index in spikes else ""
        lines.append(
            f"{record['step']:7}{record['loss']:10.4f}{record['grad_norm']:15.4f}{record['learning_rate']:15.3e}"
            f"{len(record['rows']):6}{mark}"
        )
    lines += ["", headline(records, spikes), f"The report: {paths.training / 'index.html'}"]
    return "\n".join(lines)


def step_text(paths: Paths, step: int) -> str:
    """Return the record of a step, with the file and line of each of its rows. The row with the highest loss is first.

    Raises ParamsError if there is no such step.
    """
    lines = recorded_lines(paths)
    check_step(step, len(lines))
    record = json.loads(lines[step - 1])
    rows = worst_rows(record["rows"], len(record["rows"])) or record["rows"]
    names = row_names(paths.prepared / "rows.arrow", [row for row, _, _ in rows])
    return "\n".join(
        [
            describe(record),
            f"{'loss':>10}{'loss tokens':>13}  row",
            *[f"{_number(loss):>10}{count:13}  {name}" for name, (_, loss, count) in zip(names, rows, strict=True)],
        ]
    )


def describe(record: dict[str, Any]) -> str:
    """Return the record of a step as a line, without its rows."""
    return (
        f"step {record['step']}: loss {record['loss']:.6g}, gradient norm {record['grad_norm']:.6g}, learning rate "
        f"{record['learning_rate']:.4g}, {len(record['rows'])} rows"
    )


def _number(loss: float | None) -> str:
    return "unknown" if loss is None else f"{loss:.4f}"
