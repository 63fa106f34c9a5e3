"""Decides whether a new version becomes the champion of its registered model.

    decide("if_better", 0.05, Candidate("2", tags, rows), Candidate("1", champion_tags, champion_rows))

The new version must be better than the champion on the validation rows or, if there is no champion, better than its
base model. If params.yaml names general rows, on which the adapter was not trained, the new version must also not be
worse on them than its base model by more than a margin. The base model is the reference there, not the champion:
otherwise each champion could be a little worse than the one before, until much is lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from recipe.report.comparison import ScoredRow, adapters_on_same_rows, compare
from recipe.report.row_scores import GENERAL, RowSets

ALIAS = "champion"
COMPARED = (
    ("validation_sha256", "different validation rows, tokens or completion masks"),
    ("tokenizer_sha256", "a different tokenizer"),
)


@dataclass(frozen=True)
class Candidate:
    """A version, its tags, and the scores of its rows, which are empty for a version that stores none."""

    number: str
    tags: dict[str, str]
    rows: RowSets = field(default_factory=dict)


def decide(rule: str, margin: float, new: Candidate, champion: Candidate | None) -> tuple[bool, str]:
    """Return whether the `champion` alias moves to the version `new`, and sentences that give the reasons.

    `rule` is registry.promote, and `margin` is registry.general_margin.
    """
    number = new.number
    if rule == "never":
        return (
            False,
            f"version {number} is registered, but the {ALIAS} alias does not move, because registry.promote is never",
        )
    if champion and champion.number == number:
        return False, f"version {number} is already the {ALIAS}"
    if rule == "always":
        replaces = f", replacing version {champion.number}," if champion else ""
        return True, f"version {number} is now the {ALIAS}{replaces} because registry.promote is always"
    stays = f"version {champion.number} stays the {ALIAS}" if champion else f"there is still no {ALIAS}"
    if champion:
        for tag, difference in COMPARED:
            if new.tags[tag] != champion.tags.get(tag):
                return False, (
                    f"{stays}: version {number} was evaluated with {difference}, so the validation losses can't be "
                    "compared. To move the alias anyway, set registry.promote to always"
                )
    is_better, own = _own_rows(new, champion)
    is_safe, general = _general_rows(new, margin)
    if is_better and is_safe:
        verdict = f"version {number} is now the {ALIAS}" if champion else f"version {number} is the first {ALIAS}"
    else:
        verdict = stays
    return is_better and is_safe, "; ".join(filter(None, (f"{verdict}: {own}", general)))


def _own_rows(new: Candidate, champion: Candidate | None) -> tuple[bool, str]:
    """Return whether the new version is better on the validation rows, and a clause that says by how much."""
    if champion is None:
        reference, old = "the base model", float(new.tags["base_validation_loss"])
        rows: Sequence[ScoredRow] = new.rows["validation"]
    else:
        reference, old = f"version {champion.number}", float(champion.tags["validation_loss"])
        rows = adapters_on_same_rows(champion.rows.get("validation", []), new.rows["validation"])
    losses = f"validation loss {float(new.tags['validation_loss']):.4f} against {old:.4f} for {reference}"
    result = compare(rows, "loss")
    if result is None:
        return float(
            new.tags["validation_loss"]
        ) < old, f"{losses}, without an interval, because {reference} stores none"
    return _is_better(result), f"{losses} ({_gain(result)})"


def _is_better(result: dict[str, Any]) -> bool:
    return bool((result["gain"] if result["low"] is None else result["low"]) > 0)


def _gain(result: dict[str, Any]) -> str:
    if result["low"] is None:
        return f"{result['rows']:,} rows, too few for an interval"
    return f"95% interval of the gain {result['low']:+.4f} to {result['high']:+.4f}"


def _general_rows(new: Candidate, margin: float) -> tuple[bool, str]:
    """Return whether the new version is not worse than its base model on the general rows, and a clause about it.

    The worse end of each 95% interval must be within the margin. Without an interval, the difference must be.
    """
    rows = new.rows.get(GENERAL, [])
    clauses, is_safe = [], True
    for measure, what in (("loss", "loss"), ("exact_match", "exact match")):
        result = compare(rows, measure)
        if result is None:
            continue
        worst = result["gain"] if result["low"] is None else result["low"]
        is_within = worst >= -margin
        is_safe = is_safe and is_within
        values = (
            f"{result['adapter']:.4f} against {result['base']:.4f}" if measure == "loss"
            else f"{result['adapter']:.1%} against {result['base']:.1%}"
        )  # fmt: skip
        clauses.append(
            f"{what} {values} for the base model ({_gain(result)}, {'within' if is_within else 'beyond'} the margin of "
            f"{margin:g})"
        )
    return is_safe, f"on {len(rows):,} general rows, " + " and ".join(clauses) if clauses else ""
