"""Builds the report that shows whether the adapter is better than the base model, by how much, and for which rows.

report_page(results, groups, generations, pictures(groups), about("demo-base", meta, train_metrics))
"""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from recipe.report.comparison import FEWEST_ROWS, MEASURES, RESAMPLES, VARIANTS, Groups, describe_gain, headline
from recipe.report.html import Part, figure, page, table
from recipe.report.svg import pairs_of_bars
from recipe.text.alpaca import question_in

SHOWN_ANSWERS = 30
MAX_GROUPS = 40  # with more groups, a chart would be unreadable
RIGHT = "✓ "
CHART_LABELS = {"loss": "loss", "exact_match": "exact match"}  # the axis label for each measure that has a chart
MAX_NAMES = 10


def pictures(groups: Groups) -> dict[str, str]:
    """Return SVG charts of the loss and exact match of both variants by length and, if available, by category."""
    charts = {}
    for name, results in groups.items():
        measure = name.partition("_by_")[0]
        pairs = {group: (result["base"], result["adapter"]) for group, result in results.items()}
        if measure in CHART_LABELS and 0 < len(pairs) <= MAX_GROUPS:
            charts[name] = pairs_of_bars(pairs, VARIANTS, CHART_LABELS[measure], shares=measure != "loss")
    return charts


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
    charts: Mapping[str, str], description: str,
) -> str:  # fmt: skip
    """Return the report as HTML.

    `results` is the content of metrics/evaluate.json, and `description` is the sentence that `about` returns.
    """
    parts = [*_numbers(results), *_groups(groups, charts), *_tasks(results)]
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


def _numbers(results: dict[str, Any]) -> list[Part]:
    numbers = [
        [variant, *(_format_score(name, value) for name, value in results[variant].items())] for variant in VARIANTS
    ]
    gain = results["difference"]
    gains = [
        [name.replace("_", " "), *describe_gain(name, gain[name], gain[f"{name}_low"], gain[f"{name}_high"])]
        for name in MEASURES
        if name in gain
    ]
    return [
        Part("Validation scores", table(["model", "loss", "perplexity", "token accuracy", "exact match"], numbers),
             f"The scores cover {results['rows']:,} validation rows. For exact match, answers to "
             f"{results['prompts']:,} prompts were generated with greedy decoding."),
        Part("Adapter gains", table(["measure", "gain", "95% interval"], gains),
             f"The intervals are percentile bootstrap intervals from {RESAMPLES:,} resamples of the validation rows."),
    ]  # fmt: skip


def _format_score(name: str, value: float | None) -> str:
    """Format a score: loss with three decimals, perplexity with two decimals, and all other scores as percentages."""
    if value is None:
        return "-"
    return f"{value:.3f}" if name == "loss" else f"{value:,.2f}" if name == "perplexity" else f"{value:.1%}"


def _groups(groups: Groups, charts: Mapping[str, str]) -> list[Part]:
    parts = []
    for name, results in groups.items():
        measure, _, grouping = name.partition("_by_")
        title = f"{measure.replace('_', ' ').capitalize()} by {grouping}"
        rows = [
            [group, result["rows"], *(_format_score(measure, result[variant]) for variant in VARIANTS),
             *describe_gain(measure, result["gain"], result["low"], result["high"])]
            for group, result in results.items()
        ]  # fmt: skip
        if rows:
            chart = _chart(charts, name, f"{title} for the base model and the adapter. The table lists the numbers.")
            unit = "prompts" if measure == "exact_match" else "rows"
            header = [grouping, unit, *VARIANTS, "gain", "95% interval"]
            parts.append(Part(title, chart + table(header, rows), _group_note(results, unit)))
    return parts


def _group_note(results: dict[str, dict[str, Any]], unit: str) -> str:
    """Return a note about groups in which the adapter is worse, and about missing intervals."""
    sentences = []
    worse = [group for group, result in results.items() if result["high"] is not None and result["high"] < 0]
    if worse:
        rest = f" and {len(worse) - MAX_NAMES} more" if len(worse) > MAX_NAMES else ""
        sentences.append(
            "The adapter is worse than the base model, with an interval that excludes zero, in these groups: "
            f"{', '.join(worse[:MAX_NAMES])}{rest}. (If there were no real difference, this would happen by chance in "
            "about one group out of 40.)"
        )
    if any(result["low"] is None for result in results.values()):
        sentences.append(
            f"A group with fewer than {FEWEST_ROWS} {unit}, or with the same change in exact match for every prompt, "
            "has no interval."
        )
    return " ".join(sentences)


def _chart(charts: Mapping[str, str], name: str, label: str) -> Markup:
    return figure(charts[name], label) if name in charts else Markup("")


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
