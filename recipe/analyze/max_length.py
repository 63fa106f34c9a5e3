"""Computes how max_length affects the rows, the fill rate of packed sequences, and the cost of an epoch.

results = limits(lengths, loss_starts, configured=1024)    # a Limit for 1024 and for several powers of two
best, reason = recommend(results, configured=1024)
"""

from collections.abc import Sequence
from dataclasses import dataclass

from recipe.tokens.lengths import MAX_CUT, SHORTEST, shortest_limit
from recipe.tokens.packing import pack_best_fit

SAMPLE = 100_000  # maximum number of rows to pack; larger datasets are sampled at even intervals
MIN_EXTRA_COST = 0.1  # a shorter limit than the configured one is not recommended if it costs this much more


@dataclass(frozen=True)
class Limit:
    """The effect of one value of max_length on the rows, on the tokens, and on the cost of an epoch.

    `rows_cut` and `rows_dropped` are shares of the rows. `tokens_lost` is a share of the tokens. `filled` is the share
    of positions in packed sequences that contain tokens. `cost` is the number of positions per epoch, including
    padding, relative to the number at the configured limit. This definition assumes that every position costs the same,
    which is true of the matmuls in a LoRA step. It ignores attention, which is computed within each row and accounts
    for 1% of the work at these lengths.
    """

    max_length: int
    rows_cut: float
    rows_dropped: float
    tokens_lost: float
    filled: float
    cost: float


def candidates(lengths: Sequence[int], configured: int) -> list[int]:
    """Return the limits to compare: the configured limit and the powers of two from SHORTEST.

    The list ends at the first power that no row exceeds or at the second power that at most MAX_CUT of the rows exceed,
    whichever is smaller.
    """
    enough, powers = shortest_limit(lengths), [SHORTEST]
    while powers[-1] < enough:
        powers.append(2 * powers[-1])
    if powers[-1] < max(lengths):
        powers.append(2 * powers[-1])
    return sorted({*powers, configured})


def limits(
    lengths: Sequence[int], loss_starts: Sequence[int], configured: int, *, drop_overlong: bool = False
) -> list[Limit]:
    """Return a Limit for each candidate at which at least one row is kept, in ascending order.

    For each row, `lengths` contains the number of tokens before cutting, and `loss_starts` contains the number of
    tokens before the first token in the loss. As in the prepare stage, a row that exceeds the limit is cut. The row is
    dropped instead if cutting would leave no token in the loss, or if `drop_overlong` is set.
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


def recommend(results: Sequence[Limit], configured: int) -> tuple[Limit, str]:
    """Return the recommended limit, and the reason as text.

    It is the shortest limit that cuts or drops no more than MAX_CUT of the rows. If the configured limit also meets
    this condition, and the shorter limit would cost at least MIN_EXTRA_COST more, it is the configured limit.
    """
    enough = [limit for limit in results if limit.rows_cut + limit.rows_dropped <= MAX_CUT]
    best = enough[0]
    current = next((limit for limit in enough if limit.max_length == configured), None)
    if current and current is not best and best.cost >= (1 + MIN_EXTRA_COST) * current.cost:
        return current, (
            f"The current limit of {configured:,} tokens affects no more than {MAX_CUT:.0%} of the rows: "
            f"{_loss(current)}. A limit of {best.max_length:,} also would, but it costs {best.cost:.2f} times as much, "
            "because more padding is needed. Its sequences need less memory."
        )
    reason = (
        f"{best.max_length:,} tokens is the smallest candidate that affects no more than {MAX_CUT:.0%} of the rows: "
        f"{_loss(best)}."
    )
    longer = [limit.cost for limit in results if limit.max_length > best.max_length]
    if longer:
        costs = f"{min(longer):.2f}" if min(longer) == max(longer) else f"{min(longer):.2f} to {max(longer):.2f}"
        reason += f" It costs {best.cost:.2f}, and longer limits cost {costs}. Longer sequences need more memory."
    return best, reason


def _loss(limit: Limit) -> str:
    return (
        f"it cuts or drops {limit.rows_cut + limit.rows_dropped:.2%} of them and loses {limit.tokens_lost:.2%} of the "
        "tokens"
    )
