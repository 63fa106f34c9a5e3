"""Compares the adapter with the base model on the same rows: overall, by category and by length, with 95% intervals.

low, high = interval(losses, tokens)    # 95% interval of sum(losses) / sum(tokens)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recipe.core.errors import DataError

VARIANTS = ("base", "adapter")
MEASURES = ("loss", "exact_match", "chrf", "token_accuracy")
LABELS = {  # the names of the measures in tables, in the order of their columns
    "loss": "loss", "perplexity": "perplexity", "token_accuracy": "token accuracy", "exact_match": "exact match",
    "chrf": "chrF",
}  # fmt: skip
OF_ANSWERS = ("exact_match", "chrf")  # the measures of generated answers; the others are measures of the reference
Groups = dict[str, dict[str, dict[str, Any]]]  # {"loss_by_category": {category: result of compare()}}
# The minimum number of rows for an interval. With 10 rows of normally distributed gains, the nominal 95% interval
# covers the true value in 90% of cases; with 5 rows, in 85%.
FEWEST_ROWS = 10
RESAMPLES = 1000
COVERED = 0.95
AT_ONCE = 1 << 22  # number of row indices drawn per step, which take 32 MiB


@dataclass(frozen=True)
class ScoredRow:
    """The scores of a validation row. Each pair is (base, adapter)."""

    category: str  # "" if the dataset has no categories
    length: int  # number of tokens in the prompt and the answer
    loss_tokens: int  # number of loss positions
    losses: tuple[float, float]  # sums over the loss positions, in nats
    right: tuple[int, int]  # numbers of loss positions at which the model ranks the correct token first
    matches: tuple[bool, bool] | None  # whether the generated answer is an exact match; None if no answer was generated
    chrf: tuple[float, float] | None = None  # similarity of the answer and the reference, from 0 to 100; see chrf.py


def interval(above: Sequence[float], below: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Return the 95% percentile bootstrap interval of sum(above) / sum(below).

    Rows, not tokens, are resampled, because the tokens of an answer are not independent. Source: Efron and
    Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
    """
    numerators, denominators = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    assert len(numerators) == len(denominators) > 0
    rng, size = np.random.Generator(np.random.PCG64(seed)), len(numerators)
    step, ratios = max(1, AT_ONCE // size), []
    for start in range(0, RESAMPLES, step):
        drawn = rng.integers(0, size, (min(step, RESAMPLES - start), size))
        ratios.append(numerators[drawn].sum(axis=1) / denominators[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(ratios), [(1 - COVERED) / 2, (1 + COVERED) / 2])
    return round(float(low), 6), round(float(high), 6)


def compare(rows: Sequence[ScoredRow], measure: str) -> dict[str, Any] | None:
    """Compare the base model and the adapter on the rows that have a value for the measure.

    Returns both scores and the gain with its 95% interval, or None if no row has a value. The gain is positive if
    the adapter is better, which means a lower loss or a higher value of another measure. No interval is computed if
    there are fewer than FEWEST_ROWS rows, or if all answers have the same gain. Resampling rows with the same gain
    always produces the same value, which says nothing about the uncertainty.
    """
    sums: list[tuple[float, float, int]]
    if measure == "exact_match":
        sums = [(*row.matches, 1) for row in rows if row.matches is not None]
    elif measure == "chrf":
        sums = [(*row.chrf, 1) for row in rows if row.chrf is not None]
    else:
        sums = [(*(row.losses if measure == "loss" else row.right), row.loss_tokens) for row in rows]
    if not sums:
        return None
    base, adapter, below = zip(*sums, strict=True)
    sign = -1 if measure == "loss" else 1
    gains = [sign * (new - old) for old, new in zip(base, adapter, strict=True)]
    result: dict[str, Any] = {"rows": len(sums)}
    for name, values in (("base", base), ("adapter", adapter), ("gain", gains)):
        result[name] = round(sum(values) / sum(below), 6)
    has_interval = len(sums) >= FEWEST_ROWS and (measure not in OF_ANSWERS or len(set(gains)) > 1)
    result["low"], result["high"] = interval(gains, below) if has_interval else (None, None)
    return result


def adapters_on_same_rows(old: Sequence[ScoredRow], new: Sequence[ScoredRow]) -> list[ScoredRow]:
    """Return rows whose pairs of scores are (old adapter, new adapter), from two evaluations of the same rows.

    Returns no rows if one of the two evaluations has none. Raises DataError if they have different numbers of rows.
    """
    if not old or not new:
        return []
    if len(old) != len(new):
        raise DataError(f"the two evaluations contain {len(old):,} and {len(new):,} rows, although these are the same.")

    def answers(first: tuple[Any, Any] | None, second: tuple[Any, Any] | None) -> Any:
        return (first[1], second[1]) if first and second else None

    return [
        ScoredRow(
            category=row.category, length=row.length, loss_tokens=row.loss_tokens,
            losses=(before.losses[1], row.losses[1]), right=(before.right[1], row.right[1]),
            matches=answers(before.matches, row.matches), chrf=answers(before.chrf, row.chrf),
        )
        for before, row in zip(old, new, strict=True)
    ]  # fmt: skip


def by_group(rows: Sequence[ScoredRow]) -> Groups:
    """Compare the base model and the adapter on every measure, by category and by length.

    Categories are sorted by name, and length groups from short to long.
    """
    labels = length_groups([row.length for row in rows])
    groupings = {
        "category": sorted(((row.category, row) for row in rows if row.category), key=lambda pair: pair[0]),
        "length": sorted(zip(labels, rows, strict=True), key=lambda pair: pair[1].length),
    }
    groups: Groups = {}
    for name, pairs in groupings.items():
        members: dict[str, list[ScoredRow]] = {}
        for group, row in pairs:
            members.setdefault(group, []).append(row)
        for measure in MEASURES:
            compared = {group: compare(group_rows, measure) for group, group_rows in members.items()}
            groups[f"{measure}_by_{name}"] = {group: result for group, result in compared.items() if result}
    return groups


def overall(rows: Sequence[ScoredRow]) -> dict[str, dict[str, float | None]]:
    """Return the scores of the base model and the adapter over all rows, and the gains with their 95% intervals.

    Perplexity is exp(loss). If no row has a value for a measure, its scores are None, and its gain is left out.
    """
    compared = {measure: compare(rows, measure) for measure in MEASURES}

    def score(measure: str, variant: str) -> Any:
        result = compared[measure]
        return result[variant] if result else None

    results: dict[str, dict[str, float | None]] = {
        variant: {
            "loss": score("loss", variant),
            "perplexity": round(math.exp(min(score("loss", variant), 100)), 4),
            "token_accuracy": score("token_accuracy", variant),
            "exact_match": score("exact_match", variant),
            "chrf": score("chrf", variant),
        }
        for variant in VARIANTS
    }
    difference: dict[str, float | None] = {}
    for measure, result in compared.items():
        if result:
            difference |= {
                measure: result["gain"],
                f"{measure}_low": result["low"],
                f"{measure}_high": result["high"],
            }
    return results | {"difference": difference}


def describe_gain(measure: str, gain: float, low: float | None, high: float | None) -> tuple[str, str]:
    """Return a gain and its interval as two strings, such as `2.896 lower` and `2.713 to 3.102`. `-` means no interval.

    Gains in exact matches and token accuracy are in percentage points, gains in chrF in chrF points. For the loss, a
    gain is a decrease. If the gain is negative, both strings state how much worse the adapter is.
    """
    scale, digits, unit = {"loss": (1, 3, ""), "chrf": (1, 1, " points")}.get(measure, (100, 1, " points"))
    size = f"{scale * abs(gain):.{digits}f}"
    direction = "lower" if (gain > 0) == (measure == "loss") else "higher"
    text = f"{size}{unit} {direction}" if float(size) else "no difference"
    if low is None or high is None:
        return text, "-"
    ends = (low, high) if gain >= 0 else (-high, -low)
    return text, " to ".join(f"{round(scale * end, digits) + 0.0:.{digits}f}" for end in ends) + unit  # avoids -0.0


def format_score(measure: str, value: float | None) -> str:
    """Format a score: losses with three decimals, perplexity with two, chrF with one, and all others as percentages."""
    if value is None:
        return "-"
    digits = {"loss": ".3f", "perplexity": ",.2f", "chrf": ".1f"}.get(measure, ".1%")
    return f"{value:{digits}}"


def length_groups(lengths: list[int]) -> list[str]:
    """For each length, return the label of its quartile, such as `up to 40 tokens`."""
    ordered = sorted(lengths)
    tops = sorted({ordered[(len(ordered) * quarter - 1) // 4] for quarter in range(1, 5)})
    return [f"up to {next(top for top in tops if length <= top):,} tokens" for length in lengths]


def headline(
    results: dict[str, Any], new: str = "The adapter", old: str = "its base", loss: str = "validation loss"
) -> str:
    """Return a sentence that says whether the adapter is better than its base model, and by how much.

    If the interval for the gain in loss is not entirely above zero, the sentence says that the adapter is not better.
    `new` and `old` name two other models if `results` compares these.
    """
    base, adapter, gain = results["base"], results["adapter"], results["difference"]
    low = gain["loss_low"]
    size, between = describe_gain("loss", gain["loss"], low, gain["loss_high"])
    if low is None:
        verb, better, basis = "seems", gain["loss"] > 0, f"on {results['rows']:,} rows, too few for an interval"
    else:
        verb, better, basis = "is", low > 0, f"95% interval {between}"
    text = (
        f"{new} {verb} {'better' if better else 'not better'} than {old}: {loss} "
        f"{adapter['loss']:.3f} against {base['loss']:.3f} ({size}, {basis})"
    )
    if adapter["exact_match"] is None:
        return text + "."
    return text + f", {adapter['exact_match']:.1%} of the answers exactly right against {base['exact_match']:.1%}."
