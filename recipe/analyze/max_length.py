"""What a limit on length does: the rows it cuts and drops, how full sequences get, and what an epoch then costs.

made = limits(lengths, before, chosen=1024)    # a Limit for each power of two that makes sense, and the chosen one
best, why = recommend(made)
"""

from collections.abc import Sequence
from dataclasses import dataclass

from recipe.tokens.packing import pack_best_fit

SHORTEST = 64  # tokens: a shorter limit leaves no room for a prompt and its answer
SAMPLE = 100_000  # rows that are packed to see how full sequences get; of more, evenly spread ones
MAX_CUT = 0.01  # of the rows, what a recommended limit may cut; tokens would go by a few very long rows


@dataclass(frozen=True)
class Limit:
    """What `max_length` does: shares of rows cut and dropped and of tokens lost, fill of sequences, cost of an epoch.

    The cost is in positions computed, padding within, relative to the chosen limit's: a LoRA step's matmuls take the
    same for each. Attention, which stays within a row, is left out: at these lengths it is 1% of the work.
    """

    max_length: int
    rows_cut: float
    rows_dropped: float
    tokens_lost: float
    filled: float
    cost: float


def candidates(lengths: Sequence[int], chosen: int) -> list[int]:
    """The powers of two from SHORTEST to the second that cuts few rows, or the first that cuts none; and the chosen."""
    few = int(MAX_CUT * len(lengths))
    enough = sorted(lengths)[len(lengths) - 1 - few]  # the length that a limit must hold to cut few
    powers = [SHORTEST]
    while powers[-1] < enough:
        powers.append(2 * powers[-1])
    if powers[-1] < max(lengths):
        powers.append(2 * powers[-1])
    return sorted({*powers, chosen})


def limits(lengths: Sequence[int], before: Sequence[int], chosen: int, *, drops: bool = False) -> list[Limit]:
    """A Limit for each candidate that leaves a row, shortest first.

    `lengths` are the rows' tokens before cutting, `before` those before the first that is trained. A longer row is cut,
    or dropped where no trained token is left of it, or where all longer rows are (`drops`); prepare does the same.
    """
    step = -(-len(lengths) // SAMPLE)
    total = sum(lengths)
    kept = {}
    for limit in candidates(lengths, chosen):
        some = zip(lengths[::step], before[::step], strict=True)
        kept[limit] = [min(length, limit) for length, start in some if length <= limit or (start < limit and not drops)]
    sequences = {limit: len(pack_best_fit(some, limit)) for limit, some in kept.items()}
    made = []
    for limit, count in sequences.items():
        if not count:
            continue
        longer = [(length, start) for length, start in zip(lengths, before, strict=True) if length > limit]
        dropped = [length for length, start in longer if start >= limit or drops]
        lost = sum(length - limit for length, _ in longer) + limit * len(dropped)
        made.append(
            Limit(
                max_length=limit,
                rows_cut=round((len(longer) - len(dropped)) / len(lengths), 6),
                rows_dropped=round(len(dropped) / len(lengths), 6),
                tokens_lost=round(lost / total, 6),
                filled=round(sum(kept[limit]) / (count * limit), 6),
                cost=round(count * limit / (sequences[chosen] * chosen), 6),
            )
        )
    return made


def recommend(made: Sequence[Limit]) -> tuple[Limit, str]:
    """The shortest limit that cuts or drops at most MAX_CUT of the rows, and why."""
    best = next(one for one in made if one.rows_cut + one.rows_dropped <= MAX_CUT)
    why = (
        f"{best.max_length:,} is the shortest of these that cuts or drops at most {MAX_CUT:.0%} of the rows: "
        f"{best.rows_cut + best.rows_dropped:.2%}, with {best.tokens_lost:.2%} of the tokens. Packed, an epoch costs "
        "about the same with a longer one, and a sequence needs more memory."
    )
    return best, why
