"""The adapter beside its base, row by row: what it gains, by kind and length, and how sure that is.

low, high = interval(losses, tokens)    # of sum(losses) / sum(tokens), 95%
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from recipe.errors import DataError

Scores = list[tuple[float, int, int]]  # of each row: the sum of its losses, how many tokens are right, and of how many
RESAMPLES = 1000
COVERED = 0.95
AT_ONCE = 1 << 22  # numbers drawn at once: 32 MB


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


def differences(base: Scores, adapter: Scores, generations: list[dict[str, Any]]) -> dict[str, float]:
    """What the adapter gains, row by row, with 95% intervals: its loss below the base's, its exact matches above."""
    counts = [count for _, _, count in base]
    gains = [one - other for (one, _, _), (other, _, _) in zip(base, adapter, strict=True)]
    made = {"loss": round(sum(gains) / sum(counts), 6)}
    made["loss_low"], made["loss_high"] = interval(gains, counts)
    if generations:
        won = [one["adapter_matches"] - one["base_matches"] for one in generations]
        made["exact_match"] = round(sum(won) / len(won), 6)
        made["exact_match_low"], made["exact_match_high"] = interval(won, [1] * len(won))
    return made


def loss_by(groups: list[str], scores: dict[str, Scores]) -> dict[str, dict[str, float]]:
    """Loss of base and adapter by the group of each row, in the order in which groups first stand; "" is none."""
    made: dict[str, dict[str, float]] = {}
    for group in dict.fromkeys(groups):
        rows = [index for index, one in enumerate(groups) if one == group]
        if group:
            made[group] = {"rows": len(rows)} | {
                side: round(sum(some[i][0] for i in rows) / sum(some[i][2] for i in rows), 6)
                for side, some in sorted(scores.items(), reverse=True)
            }
    return made


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
    if gain["loss"] < 0:
        low, high = -high, -low
    better = "better" if gain["loss_low"] > 0 else "not better"
    text = (
        f"The adapter is {better} than its base: validation loss {adapter['loss']:.3f} against {base['loss']:.3f} "
        f"({abs(gain['loss']):.3f} {'lower' if gain['loss'] >= 0 else 'higher'}, 95% interval {low:.3f} to {high:.3f})"
    )
    if adapter["exact_match"] is None:
        return text + "."
    return text + f", {adapter['exact_match']:.1%} of the answers exactly right against {base['exact_match']:.1%}."
