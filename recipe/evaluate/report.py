"""The report on the result: whether the adapter is better than its base, by how much, where, and in what words.

report_page(results, groups, generations, pictures(groups), about("demo-base", meta, train_metrics))
"""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from recipe.report.comparison import FEWEST_ROWS, MEASURES, RESAMPLES, VARIANTS, Groups, describe_gain, headline
from recipe.report.html import Part, figure, page, table
from recipe.report.svg import pairs_of_bars
from recipe.text.templates import question_in

SHOWN_ANSWERS = 30
MAX_GROUPS = 40  # of more, a picture is no help
RIGHT = "✓ "
DRAWN = {"loss": "loss", "exact_match": "exactly right"}  # measures that have a picture, and its axis
MAX_NAMES = 10


def pictures(groups: Groups) -> dict[str, str]:
    """Charts (SVG) of base and adapter by category, if rows have categories, and by length: loss and exact matches."""
    drawn = {}
    for name, some in groups.items():
        measure = name.partition("_by_")[0]
        pairs = {group: (one["base"], one["adapter"]) for group, one in some.items()}
        if measure in DRAWN and 0 < len(pairs) <= MAX_GROUPS:
            drawn[name] = pairs_of_bars(pairs, VARIANTS, DRAWN[measure], shares=measure != "loss")
    return drawn


def about(base_id: str, meta: dict[str, Any], train_metrics: dict[str, Any]) -> str:
    """What was train_metrics, in a sentence that follows the headline."""
    own = train_metrics["trainable_parameters"]
    return (
        f"It has {own:,} parameters beside the {train_metrics['parameters'] - own:,} of {base_id}, and was trained on "
        f"{meta['rows']['train']:,} rows in {train_metrics['steps']:,} steps."
    )


def report_page(
    results: dict[str, Any], groups: Groups, generations: list[dict[str, Any]],
    drawn: Mapping[str, str], trained: str,
) -> str:  # fmt: skip
    """The report as HTML; `results` are metrics/evaluate.json, `trained` says what was trained."""
    parts = [*_numbers(results), *_groups(groups, drawn), *_tasks(results)]
    shown = [
        [
            question_in(one["prompt"]),
            one["completion"],
            *(RIGHT * one[f"{variant}_matches"] + one[variant] for variant in VARIANTS),
        ]
        for one in generations[:SHOWN_ANSWERS]
    ]
    if shown:
        note = f"{RIGHT.strip()} stands before an answer that is exactly right."
        if len(generations) > SHOWN_ANSWERS:
            note += f" generations.jsonl has all {len(generations):,}."
        parts.append(Part("Base beside adapter", table(["asked", "wanted", *VARIANTS], shown), note))
    return page("Is the adapter better?", f"{headline(results)} {trained}", parts)


def _numbers(results: dict[str, Any]) -> list[Part]:
    numbers = [[variant, *(_short(name, value) for name, value in results[variant].items())] for variant in VARIANTS]
    gain = results["difference"]
    gains = [
        [name.replace("_", " "), *describe_gain(name, gain[name], gain[f"{name}_low"], gain[f"{name}_high"])]
        for name in MEASURES
        if name in gain
    ]
    return [
        Part("On the validation rows", table(["model", "loss", "perplexity", "token accuracy", "exact match"], numbers),
             f"{results['rows']:,} rows; {results['prompts']:,} prompts answered in full, greedily."),
        Part("What the adapter gains", table(["measure", "gain", "95% interval"], gains),
             f"Bootstrap: as many validation rows drawn again, with replacement, {RESAMPLES:,} times."),
    ]  # fmt: skip


def _short(name: str, value: float | None) -> str:
    """A score as the headline has it: losses with three digits, perplexity with two, shares as percentages."""
    if value is None:
        return "-"
    return f"{value:.3f}" if name == "loss" else f"{value:,.2f}" if name == "perplexity" else f"{value:.1%}"


def _groups(groups: Groups, drawn: Mapping[str, str]) -> list[Part]:
    parts = []
    for name, some in groups.items():
        measure, _, grouping = name.partition("_by_")
        title = f"{measure.replace('_', ' ').capitalize()} by {grouping}"
        rows = [
            [group, one["rows"], *(_short(measure, one[variant]) for variant in VARIANTS),
             *describe_gain(measure, one["gain"], one["low"], one["high"])]
            for group, one in some.items()
        ]  # fmt: skip
        if rows:
            body = _drawn(drawn, name, f"{title}, base and adapter, as in the table below.")
            counted = "prompts" if measure == "exact_match" else "rows"
            header = [grouping, counted, *VARIANTS, "gain", "95% interval"]
            parts.append(Part(title, body + table(header, rows), _group_note(some, counted)))
    return parts


def _group_note(some: dict[str, dict[str, Any]], counted: str) -> str:
    """What the intervals of a table say, and why some are missing."""
    said = []
    worse = [group for group, one in some.items() if one["high"] is not None and one["high"] < 0]
    if worse:
        more = f" and {len(worse) - MAX_NAMES} more" if len(worse) > MAX_NAMES else ""
        said.append(
            f"Worse than the base by the whole interval: {', '.join(worse[:MAX_NAMES])}{more}. (Where nothing differs, "
            "that happens to one group in 40 by chance.)"
        )
    if any(one["low"] is None for one in some.values()):
        said.append(f"Fewer than {FEWEST_ROWS} {counted}, or answers that are all alike, have no interval.")
    return " ".join(said)


def _drawn(drawn: Mapping[str, str], name: str, label: str) -> Markup:
    return figure(drawn[name], label) if name in drawn else Markup("")


def _tasks(results: dict[str, Any]) -> list[Part]:
    rows = [
        [task, metric, *(_with_error(scores[variant], metric) for variant in VARIANTS)]
        for task, scores in results.get("tasks", {}).items()
        for metric in scores["base"] if "_stderr" not in metric
    ]  # fmt: skip
    note = "By lm-evaluation-harness; ± is the standard error."
    return [Part("Tasks", table(["task", "metric", *VARIANTS], rows), note)] if rows else []


def _with_error(scores: dict[str, float], metric: str) -> str:
    name, _, rest = metric.partition(" ")
    error = scores.get(f"{name}_stderr{f' {rest}' if rest else ''}")
    return "-" if metric not in scores else f"{scores[metric]:.4f}" + ("" if error is None else f" ± {error:.4f}")
