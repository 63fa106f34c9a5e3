"""Compares two registered versions on the same rows: the validation rows, the general rows, or both.

compared = compare_versions(old, new)
text(compared), report(compared)
"""

from dataclasses import dataclass
from typing import Any

from recipe.core.errors import DataError
from recipe.register.promotion import Candidate
from recipe.report.comparison import (
    LABELS,
    MEASURES,
    VARIANTS,
    Groups,
    adapters_on_same_rows,
    by_group,
    describe_gain,
    format_score,
    headline,
    overall,
)
from recipe.report.html import Part, page
from recipe.report.row_scores import GENERAL
from recipe.report.score_tables import Names, group_parts, pictures, score_parts

VALIDATION = "validation"
TAG = {VALIDATION: "validation_sha256", GENERAL: "general_sha256"}
MAX_LINES = 20  # of each table by category in the terminal


@dataclass(frozen=True)
class Compared:
    """The scores of two versions. Keys of `results` and `groups` are names of sets of rows.

    In both mappings, the old version takes the place of the base model, and the new version that of the adapter.
    `notes` says which sets could not be compared, and why.
    """

    names: Names
    results: dict[str, dict[str, Any]]
    groups: dict[str, Groups]
    notes: list[str]


def compare_versions(old: Candidate, new: Candidate, names: Names) -> Compared:
    """Compare the versions on each set of rows that both were evaluated on.

    Raises DataError if there is none.
    """
    results, groups, notes = {}, {}, []
    for name, tag in TAG.items():
        if name not in old.rows and name not in new.rows:
            continue
        if reason := _not_comparable(old, new, name, tag):
            notes.append(f"The {name} rows are not compared: {reason}.")
            continue
        rows = adapters_on_same_rows(old.rows[name], new.rows[name])
        answered = sum(row.matches is not None for row in rows)
        results[name] = {"rows": len(rows), "prompts": answered, **overall(rows)}
        groups[name] = by_group(rows)
    if not results:
        reason = " ".join(notes) or "Neither version stores the scores of its rows."
        raise DataError(f"the two versions can't be compared. {reason}")
    return Compared(names, results, groups, notes)


def _not_comparable(old: Candidate, new: Candidate, name: str, tag: str) -> str | None:
    for version in (old, new):
        if name not in version.rows:
            return f"version {version.number} stores no scores of these rows"
    if old.tags.get("tokenizer_sha256") != new.tags.get("tokenizer_sha256"):
        return "the versions have different tokenizers"
    if old.tags.get(tag) != new.tags.get(tag):
        return "the versions were evaluated with different rows, tokens or completion masks"
    return None


def sentences(compared: Compared) -> list[str]:
    """Return a sentence for each set of rows that says whether the new version is better, and the notes."""
    names, lines = compared.names, []
    for name, results in compared.results.items():
        start = "" if name == VALIDATION else f"On {results['rows']:,} {name} rows, "
        subject = names.new_in_text if start else names.new_in_text[:1].upper() + names.new_in_text[1:]
        lines.append(start + headline(results, subject, names.old_in_text, f"{name} loss"))
    return lines + compared.notes


def text(compared: Compared) -> str:
    """Return the comparison for the terminal: the sentences, and a table for each set of rows."""
    lines = sentences(compared)
    for name, results in compared.results.items():
        rows = [
            (LABELS[measure], *(format_score(measure, results[variant][measure]) for variant in VARIANTS),
             *describe_gain(measure, *(results["difference"][f"{measure}{end}"] for end in ("", "_low", "_high"))))
            for measure in MEASURES if measure in results["difference"]
        ]  # fmt: skip
        lines += ["", *_table([f"{results['rows']:,} {name} rows", *compared.names.columns, "gain", "interval"], rows)]
        for measure in ("loss", "exact_match", "chrf"):
            group = compared.groups[name].get(f"{measure}_by_category", {})
            rows = [
                (category, *(format_score(measure, scores[variant]) for variant in VARIANTS),
                 *describe_gain(measure, scores["gain"], scores["low"], scores["high"]))
                for category, scores in group.items()
            ]  # fmt: skip
            if rows:
                header = [f"{LABELS[measure]} by category", *compared.names.columns, "gain", "interval"]
                lines += ["", *_table(header, rows[:MAX_LINES])]
            if len(rows) > MAX_LINES:
                lines.append(f"and {len(rows) - MAX_LINES:,} more categories, which the report lists")
    return "\n".join(lines)


def _table(header: list[str], rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" if place == 0 else f"{cell:>{width}}"
                  for place, (cell, width) in enumerate(zip(line, widths, strict=True)))
        for line in [tuple(header), *rows]
    ]  # fmt: skip


def report(compared: Compared) -> tuple[str, dict[str, str]]:
    """Return the report as HTML, and its charts as {name: SVG}."""
    parts: list[Part] = []
    drawn: dict[str, str] = {}
    for name, results in compared.results.items():
        prefix = "" if name == VALIDATION else "General rows: "
        charts = pictures(compared.groups[name], compared.names)
        parts += score_parts(results, compared.names, f"{name} rows", prefix)
        parts += group_parts(compared.groups[name], charts, compared.names, prefix)
        drawn |= {f"{name}_{chart}": svg for chart, svg in charts.items()}
    title = f"{compared.names.new_in_text[:1].upper()}{compared.names.new_in_text[1:]} and {compared.names.old_in_text}"
    return page(title, " ".join(sentences(compared)), parts), drawn
