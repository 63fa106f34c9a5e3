"""The effect of max_length: how many rows it cuts or drops, how full packed sequences are, and what an epoch costs.

results = limits(lengths, loss_starts, configured=1024)    # a Limit for 1024 and for each power of two worth comparing
best, reason = recommend(results)
"""

from collections.abc import Sequence
from dataclasses import dataclass

from recipe.tokens.packing import pack_best_fit

SHORTEST = 64  # tokens: a shorter limit leaves no room for a prompt and its answer
SAMPLE = 100_000  # rows packed to measure how full sequences are; larger datasets are sampled at even intervals
# Maximum share of the rows that a recommended limit may cut or drop. A share of the tokens would depend on a few very
# long rows.
MAX_CUT = 0.01


@dataclass(frozen=True)
class Limit:
    """The effect of one limit: the shares of rows cut, rows dropped, tokens lost and positions filled, and the cost.

    The cost is the number of positions computed per epoch, including padding, relative to the number at the
    configured limit: the matmuls of a LoRA step cost the same for every position. Attention is ignored, because it
    stays within a row and is 1% of the work at these lengths.
    """

    max_length: int
    rows_cut: float
    rows_dropped: float
    tokens_lost: float
    filled: float
    cost: float


def candidates(lengths: Sequence[int], configured: int) -> list[int]:
    """The limits to compare: the configured one, and powers of two from SHORTEST.

    The last power is the first one that cuts no row or the second one that cuts at most MAX_CUT of the rows, whichever
    is smaller.
    """
    max_cut_rows = int(MAX_CUT * len(lengths))
    enough = sorted(lengths)[len(lengths) - 1 - max_cut_rows]  # the shortest limit that cuts at most max_cut_rows
    powers = [SHORTEST]
    while powers[-1] < enough:
        powers.append(2 * powers[-1])
    if powers[-1] < max(lengths):
        powers.append(2 * powers[-1])
    return sorted({*powers, configured})


def limits(
    lengths: Sequence[int], loss_starts: Sequence[int], configured: int, *, drop_overlong: bool = False
) -> list[Limit]:
    """A Limit for each candidate that leaves at least one row, shortest first.

    `lengths` has the number of tokens in each row before cutting, `loss_starts` the number of tokens before the row's
    first loss position. As in prepare, a row that exceeds the limit is cut, or dropped if cutting would leave no loss
    position or `drop_overlong` is set.
    """
    step = -(-len(lengths) // SAMPLE)
    total = sum(lengths)
    kept = {}
    for limit in candidates(lengths, configured):
        kept[limit] = [
            min(length, limit)
            for length, start in zip(lengths[::step], loss_starts[::step], strict=True)
            if length <= limit or (start < limit and not drop_overlong)
        ]
    sequences = {limit: len(pack_best_fit(kept_lengths, limit)) for limit, kept_lengths in kept.items()}
    results = []
    for limit, count in sequences.items():
        if not count:
            continue
        longer = [(length, start) for length, start in zip(lengths, loss_starts, strict=True) if length > limit]
        dropped = [length for length, start in longer if start >= limit or drop_overlong]
        lost = sum(length - limit for length, _ in longer) + limit * len(dropped)
        results.append(
            Limit(
                max_length=limit,
                rows_cut=round((len(longer) - len(dropped)) / len(lengths), 6),
                rows_dropped=round(len(dropped) / len(lengths), 6),
                tokens_lost=round(lost / total, 6),
                filled=round(sum(kept[limit]) / (count * limit), 6),
                cost=round(count * limit / (sequences[configured] * configured), 6),
            )
        )
    return results


def recommend(results: Sequence[Limit]) -> tuple[Limit, str]:
    """The shortest limit that cuts or drops at most MAX_CUT of the rows, and the reason as text."""
    best = next(limit for limit in results if limit.rows_cut + limit.rows_dropped <= MAX_CUT)
    reason = (
        f"{best.max_length:,} tokens is the smallest of these limits that affects at most {MAX_CUT:.0%} of the rows: "
        f"it cuts or drops {best.rows_cut + best.rows_dropped:.2%} of them and loses {best.tokens_lost:.2%} of the "
        "tokens. "
        "With packing, a longer limit costs about the same per epoch, but each sequence needs more memory."
    )
    return best, reason
