"""Builds the report that shows whether the adapter is better than the base model, by how much, and for which rows.

report_page(results, groups, generations, pictures(groups), about("demo-base", meta, train_metrics))
"""

from collections.abc import Mapping
from typing import Any

from recipe.report.comparison import VARIANTS, Groups, headline
from recipe.report.html import Part, page, table
from recipe.report.row_scores import GENERAL
from recipe.report.score_tables import BASE_AND_ADAPTER, group_parts, score_parts
from recipe.text.alpaca import question_in

SHOWN_ANSWERS = 30
RIGHT = "✓ "


def about(base_id: str, meta: dict[str, Any], train_metrics: dict[str, Any]) -> str:
    """Return a sentence about the adapter and its training, to be shown after the headline."""
    trainable = train_metrics["trainable_parameters"]
    return (
        f"The adapter adds {trainable:,} parameters to {base_id}, which has "
        f"{train_metrics['parameters'] - trainable:,} parameters, and was trained on {meta['rows']['train']:,} rows in "
        f"{train_metrics['steps']:,} steps."
    )


def report_page(
    results: dict[str, Any], groups: Groups, generations: list[dict[str, Any]],
    charts: Mapping[str, str], description: str, general: Groups | None = None,
) -> str:  # fmt: skip
    """Return the report as HTML.

    `results` is the content of metrics/evaluate.json, and `description` is the sentence that `about` returns. `general`
    contains the groups of the rows of data.general, if there are any.
    """
    parts = score_parts(results, BASE_AND_ADAPTER, "validation rows")
    if general is not None:
        parts += score_parts(results[GENERAL], BASE_AND_ADAPTER, "general rows", "General rows: ")
    parts += group_parts(groups, charts, BASE_AND_ADAPTER)
    if general is not None:
        by_category = {name: group for name, group in general.items() if name.endswith("_by_category")}
        parts += group_parts(by_category, {}, BASE_AND_ADAPTER, "General rows: ")
    parts += _tasks(results)
    rows = [
        [
            question_in(row["prompt"]),
            row["completion"],
            *(RIGHT * row[f"{variant}_matches"] + row[variant] for variant in VARIANTS),
        ]
        for row in generations[:SHOWN_ANSWERS]
    ]
    if rows:
        note = f"{RIGHT.strip()} marks an exact match."
        if len(generations) > SHOWN_ANSWERS:
            note += f" The file generations.jsonl contains all {len(generations):,} rows."
        parts.append(Part("Sample answers", table(["prompt", "reference", *VARIANTS], rows), note))
    return page("Evaluation report", f"{headline(results)} {description}", parts)


def _tasks(results: dict[str, Any]) -> list[Part]:
    rows = [
        [task, metric, *(_with_error(scores[variant], metric) for variant in VARIANTS)]
        for task, scores in results.get("tasks", {}).items()
        for metric in scores["base"] if "_stderr" not in metric
    ]  # fmt: skip
    note = "The scores are from lm-evaluation-harness. The number after ± is the standard error."
    return [Part("Tasks", table(["task", "metric", *VARIANTS], rows), note)] if rows else []


def _with_error(scores: dict[str, float], metric: str) -> str:
    name, _, rest = metric.partition(" ")
    error = scores.get(f"{name}_stderr{f' {rest}' if rest else ''}")
    return "-" if metric not in scores else f"{scores[metric]:.4f}" + ("" if error is None else f" ± {error:.4f}")
