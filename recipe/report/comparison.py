"""The adapter beside its base, row by row: what it gains, by category and length, and how sure that is.

low, high = interval(losses, tokens)    # of sum(losses) / sum(tokens), 95%
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recipe.core.errors import DataError

VARIANTS = ("base", "adapter")
MEASURES = ("loss", "exact_match", "token_accuracy")
Groups = dict[str, dict[str, dict[str, Any]]]  # {"loss_by_category": {"sum": what compare() gives}}
FEWEST_ROWS = 10  # with an interval; it covers the truth of 10 in 90 cases of 100, of 5 in 85 (normal gains)
RESAMPLES = 1000
COVERED = 0.95
AT_ONCE = 1 << 22  # numbers drawn at once: 32 MB


@dataclass(frozen=True)
class ScoredRow:
    """A validation row as base and adapter (in this order) score it."""

    category: str  # "" where rows have none
    length: int  # tokens of prompt and answer
    loss_tokens: int  # tokens that the loss is on
    losses: tuple[float, float]  # summed over them, nats
    right: tuple[int, int]  # of them, those that the model ranks first
    matches: tuple[bool, bool] | None  # whether the answer is exactly right, where one was asked for


def interval(above: Sequence[float], below: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95% percentile interval of sum(above) / sum(below) when rows are drawn again with replacement.

    Rows and not tokens are drawn: the tokens of an answer go together. Percentile bootstrap: Efron and Tibshirani 1993,
    "An Introduction to the Bootstrap", chapter 13.
    """
    over, under = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    assert len(over) == len(under) > 0
    rng, size = np.random.Generator(np.random.PCG64(seed)), len(over)
    step, ratios = max(1, AT_ONCE // size), []
    for start in range(0, RESAMPLES, step):
        drawn = rng.integers(0, size, (min(step, RESAMPLES - start), size))
        ratios.append(over[drawn].sum(axis=1) / under[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(ratios), [(1 - COVERED) / 2, (1 + COVERED) / 2])
    return round(float(low), 6), round(float(high), 6)


def compare(rows: Sequence[ScoredRow], measure: str) -> dict[str, Any] | None:
    """A measure of base and adapter over the rows that have it, and what the adapter gains, with its 95% interval.

    Of the loss, a gain is what it is lower by; of the shares, what they are higher by. None where no row has it. Few
    rows have no interval, nor have answers that are all alike: drawn again they are the same, which proves nothing.
    """
    if measure == "exact_match":
        sums = [(*one.matches, 1) for one in rows if one.matches is not None]
    else:
        sums = [(*(one.losses if measure == "loss" else one.right), one.loss_tokens) for one in rows]
    if not sums:
        return None
    base, adapter, below = zip(*sums, strict=True)
    sign = -1 if measure == "loss" else 1
    gains = [sign * (new - old) for old, new in zip(base, adapter, strict=True)]
    made: dict[str, Any] = {"rows": len(sums)}
    for name, values in (("base", base), ("adapter", adapter), ("gain", gains)):
        made[name] = round(sum(values) / sum(below), 6)
    tells = len(sums) >= FEWEST_ROWS and (measure != "exact_match" or len(set(gains)) > 1)
    made["low"], made["high"] = interval(gains, below) if tells else (None, None)
    return made


def by_group(rows: Sequence[ScoredRow]) -> Groups:
    """Each measure by category, sorted by name, and by length, shortest first."""
    pairs = {
        "category": sorted(((one.category, one) for one in rows if one.category), key=lambda pair: pair[0]),
        "length": sorted(zip(length_groups([r.length for r in rows]), rows, strict=True), key=lambda p: p[1].length),
    }
    made: Groups = {}
    for name, some in pairs.items():
        members: dict[str, list[ScoredRow]] = {}
        for group, one in some:
            members.setdefault(group, []).append(one)
        for measure in MEASURES:
            compared = {group: compare(some, measure) for group, some in members.items()}
            made[f"{measure}_by_{name}"] = {group: one for group, one in compared.items() if one}
    return made


def overall(rows: Sequence[ScoredRow]) -> dict[str, dict[str, float | None]]:
    """Every measure over all rows: of base, of adapter, and the gain with its 95% interval.

    Perplexity is e to the loss. A measure that no row has is None, and has no gain.
    """
    compared = {measure: compare(rows, measure) for measure in MEASURES}

    def score(measure: str, variant: str) -> Any:
        one = compared[measure]
        return one[variant] if one else None

    made: dict[str, dict[str, float | None]] = {
        variant: {
            "loss": score("loss", variant),
            "perplexity": round(math.exp(min(score("loss", variant), 100)), 4),
            "token_accuracy": score("token_accuracy", variant),
            "exact_match": score("exact_match", variant),
        }
        for variant in VARIANTS
    }
    made["difference"] = {}
    for measure, one in compared.items():
        if one:
            made["difference"] |= {measure: one["gain"], f"{measure}_low": one["low"], f"{measure}_high": one["high"]}
    return made


def describe_gain(measure: str, gain: float, low: float | None, high: float | None) -> tuple[str, str]:
    """A gain and its interval as text, `2.896 lower` and `2.713 to 3.102`; of shares in points; `-` is none.

    Of the loss, a gain is what it is lower by; where it is none but a loss, both say how large that is.
    """
    scale, digits, unit = (1, 3, "") if measure == "loss" else (100, 1, " points")
    size = f"{scale * abs(gain):.{digits}f}"
    way = "lower" if (gain > 0) == (measure == "loss") else "higher"
    shown = f"{size}{unit} {way}" if float(size) else "no difference"
    if low is None or high is None:
        return shown, "-"
    ends = (low, high) if gain >= 0 else (-high, -low)
    return shown, " to ".join(f"{round(scale * end, digits) + 0.0:.{digits}f}" for end in ends) + unit  # no -0.0


def length_groups(lengths: list[int]) -> list[str]:
    """For each row, which quarter of the rows it is in by length: `up to 40 tokens`."""
    ordered = sorted(lengths)
    tops = sorted({ordered[(len(ordered) * quarter - 1) // 4] for quarter in range(1, 5)})
    return [f"up to {next(top for top in tops if length <= top):,} tokens" for length in lengths]


def headline(results: dict[str, Any]) -> str:
    """Whether the adapter is better than its base, and by how much, in a sentence; a gain that may be none is none."""
    if "difference" not in results:
        raise DataError("metrics/evaluate.json is of an older version of the recipe. Run `dvc repro`.")
    base, adapter, gain = results["base"], results["adapter"], results["difference"]
    low = gain["loss_low"]
    size, between = describe_gain("loss", gain["loss"], low, gain["loss_high"])
    if low is None:
        verb, better, sure = "seems", gain["loss"] > 0, f"on {results['rows']:,} rows, too few for an interval"
    else:
        verb, better, sure = "is", low > 0, f"95% interval {between}"
    text = (
        f"The adapter {verb} {'better' if better else 'not better'} than its base: validation loss "
        f"{adapter['loss']:.3f} against {base['loss']:.3f} ({size}, {sure})"
    )
    if adapter["exact_match"] is None:
        return text + "."
    return text + f", {adapter['exact_match']:.1%} of the answers exactly right against {base['exact_match']:.1%}."
