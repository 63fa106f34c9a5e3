"""The adapter beside its base, row by row: what it gains, by kind and length, and how sure that is.

low, high = interval(losses, tokens)    # of sum(losses) / sum(tokens), 95%
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recipe.errors import DataError

MEASURES = ("loss", "exact_match", "token_accuracy")
Groups = dict[str, dict[str, dict[str, Any]]]  # {"loss_by_kind": {"sum": what compare() gives}}
FEWEST_ROWS = 10  # with an interval; it covers the truth of 10 in 90 cases of 100, of 5 in 85 (normal gains)
RESAMPLES = 1000
COVERED = 0.95
AT_ONCE = 1 << 22  # numbers drawn at once: 32 MB


@dataclass(frozen=True)
class ScoredRow:
    """A validation row as base and adapter (in this order) score it."""

    kind: str  # "" where rows have none
    length: int  # tokens of prompt and answer
    trained: int  # tokens that the loss is on
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
        sums = [(*(one.losses if measure == "loss" else one.right), one.trained) for one in rows]
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
    """Each measure by kind, sorted by name, and by length, shortest first."""
    pairs = {
        "kind": sorted(((one.kind, one) for one in rows if one.kind), key=lambda pair: pair[0]),
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


def differences(rows: Sequence[ScoredRow]) -> dict[str, float | None]:
    """What the adapter gains over all rows, with 95% intervals; a measure that no row has is left out."""
    made: dict[str, float | None] = {}
    for measure in MEASURES:
        if one := compare(rows, measure):
            made |= {measure: one["gain"], f"{measure}_low": one["low"], f"{measure}_high": one["high"]}
    return made


def ends(gain: float, low: float, high: float, digits: int) -> str:
    """An interval as text, of what a gain, or with a negative one a loss, may be: `0.900 to 1.100`."""
    shown = (low, high) if gain >= 0 else (-high, -low)
    return " to ".join(f"{round(end, digits) + 0.0:.{digits}f}" for end in shown)  # + 0.0: no minus before a zero


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
    low, high = gain["loss_low"], gain["loss_high"]
    if low is None:
        sure, better = f"on {results['rows']:,} rows, too few for an interval", gain["loss"] > 0
    else:
        sure, better = f"95% interval {ends(gain['loss'], low, high, 3)}", low > 0
    text = (
        f"The adapter {'seems' if low is None else 'is'} {'better' if better else 'not better'} than its base: "
        f"validation loss {adapter['loss']:.3f} against {base['loss']:.3f} "
        f"({abs(gain['loss']):.3f} {'lower' if gain['loss'] >= 0 else 'higher'}, {sure})"
    )
    if adapter["exact_match"] is None:
        return text + "."
    return text + f", {adapter['exact_match']:.1%} of the answers exactly right against {base['exact_match']:.1%}."
