"""Builds the tables and charts that show two models' scores on the same rows, and the differences with intervals.

scores(results, BASE_AND_ADAPTER, "validation rows") + groups(by_group(rows), charts, BASE_AND_ADAPTER)
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from markupsafe import Markup

from recipe.report.comparison import (
    FEWEST_ROWS,
    LABELS,
    MEASURES,
    OF_ANSWERS,
    RESAMPLES,
    VARIANTS,
    Groups,
    describe_gain,
    format_score,
)
from recipe.report.html import Part, figure, table
from recipe.report.svg import pairs_of_bars

MAX_GROUPS = 40  # with more groups, a chart would be unreadable
CHARTED = ("loss", "exact_match")  # the measures that have a chart
MAX_NAMES = 10


class Names(NamedTuple):
    """The names of the two models in a table: short ones for its columns, and long ones for sentences."""

    old: str
    new: str
    old_in_text: str
    new_in_text: str

    @property
    def columns(self) -> tuple[str, str]:
        """The short names."""
        return self.old, self.new


BASE_AND_ADAPTER = Names(*VARIANTS, "the base model", "the adapter")


def pictures(groups: Groups, names: Names = BASE_AND_ADAPTER) -> dict[str, str]:
    """Return SVG charts of the loss and exact match of both models by length and, if available, by category."""
    charts = {}
    for name, results in groups.items():
        measure = name.partition("_by_")[0]
        pairs = {group: (result["base"], result["adapter"]) for group, result in results.items()}
        if measure in CHARTED and 0 < len(pairs) <= MAX_GROUPS:
            charts[name] = pairs_of_bars(pairs, names.columns, LABELS[measure], shares=measure != "loss")
    return charts


def score_parts(results: dict[str, Any], names: Names, rows: str, prefix: str = "") -> list[Part]:
    """Return a table of both models' scores and a table of the gains.

    `results` has the keys `rows` and `prompts` and those of `overall`. `rows` describes the rows, such as `validation
    rows`, and `prefix` starts both titles.
    """
    shown = [name for name in LABELS if name in results["base"]]
    numbers = [
        [name, *(format_score(measure, results[variant][measure]) for measure in shown)]
        for name, variant in zip(names.columns, VARIANTS, strict=True)
    ]
    gain = results["difference"]
    gains = [
        [LABELS[name], *describe_gain(name, gain[name], gain[f"{name}_low"], gain[f"{name}_high"])]
        for name in MEASURES
        if name in gain
    ]
    titles = ["scores" if prefix else f"{rows.removesuffix(' rows')} scores", f"{names.new} gains"]
    return [
        Part(_title(prefix, titles[0]), table(["model", *(LABELS[name] for name in shown)], numbers),
             f"The scores cover {results['rows']:,} {rows}. For exact match and chrF, answers to "
             f"{results['prompts']:,} prompts were generated with greedy decoding. chrF measures the similarity of an "
             "answer and its reference, from 0 to 100."),
        Part(_title(prefix, titles[1]), table(["measure", "gain", "95% interval"], gains),
             f"The intervals are percentile bootstrap intervals from {RESAMPLES:,} resamples of the {rows}."),
    ]  # fmt: skip


def _title(prefix: str, text: str) -> str:
    return f"{prefix}{text}" if prefix else text[:1].upper() + text[1:]


def group_parts(groups: Groups, charts: Mapping[str, str], names: Names, prefix: str = "") -> list[Part]:
    """Return a table, with its chart if `charts` has one, for each measure and each grouping."""
    parts = []
    for name, results in groups.items():
        measure, _, grouping = name.partition("_by_")
        title = f"{prefix}{LABELS[measure]} by {grouping}"
        title = title[:1].upper() + title[1:] if LABELS[measure] != "chrF" else title
        rows = [
            [group, result["rows"], *(format_score(measure, result[variant]) for variant in VARIANTS),
             *describe_gain(measure, result["gain"], result["low"], result["high"])]
            for group, result in results.items()
        ]  # fmt: skip
        if rows:
            label = f"{title} for {names.old_in_text} and {names.new_in_text}. The table lists the numbers."
            unit = "prompts" if measure in OF_ANSWERS else "rows"
            header = [grouping, unit, *names.columns, "gain", "95% interval"]
            chart = figure(charts[name], label) if name in charts else Markup("")
            parts.append(Part(title, chart + table(header, rows), _group_note(results, unit, names)))
    return parts


def _group_note(results: dict[str, dict[str, Any]], unit: str, names: Names) -> str:
    """Return a note about groups in which the new model is worse, and about missing intervals."""
    sentences = []
    worse = [group for group, result in results.items() if result["high"] is not None and result["high"] < 0]
    if worse:
        rest = f" and {len(worse) - MAX_NAMES} more" if len(worse) > MAX_NAMES else ""
        new = names.new_in_text[:1].upper() + names.new_in_text[1:]
        sentences.append(
            f"{new} is worse than {names.old_in_text}, with an interval that excludes zero, in these groups: "
            f"{', '.join(worse[:MAX_NAMES])}{rest}. (If there were no real difference, this would happen by chance in "
            "about one group out of 40.)"
        )
    if any(result["low"] is None for result in results.values()):
        sentences.append(
            f"A group with fewer than {FEWEST_ROWS} {unit}, or with the same change for every prompt, has no interval."
        )
    return " ".join(sentences)
