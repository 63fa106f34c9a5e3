"""What a limit on length does to the rows: what it cuts, how full sequences get, and what an epoch then costs.

made = limits(lengths, chosen=1024)      # a Limit for each power of two that makes sense, and for the chosen one
best, why = recommend(made)
"""

from collections.abc import Sequence
from dataclasses import dataclass

from recipe.packing import pack_best_fit

SHORTEST = 64  # tokens: a shorter limit leaves no room for a prompt and its answer
SAMPLE = 100_000  # rows that are packed to see how full sequences get; of more, evenly spread ones
MAX_CUT = 0.01  # of the rows, what a recommended limit may cut; tokens would go by a few very long rows


@dataclass(frozen=True)
class Limit:
    """What `max_length` does: shares of rows cut and of tokens lost, fill of packed sequences, cost of an epoch.

    The cost is in positions computed, padding within, relative to the chosen limit's: a LoRA step's matmuls take the
    same for each. Attention, which stays within a row, is left out: at these lengths it is 1% of the work.
    """

    max_length: int
    rows_cut: float
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


def limits(lengths: Sequence[int], chosen: int) -> list[Limit]:
    """A Limit for each candidate, shortest first; `lengths` are the rows' tokens before cutting."""
    step = -(-len(lengths) // SAMPLE)
    total, some = sum(lengths), lengths[::step]
    sequences = {
        limit: len(pack_best_fit([min(length, limit) for length in some], limit))
        for limit in candidates(lengths, chosen)
    }
    made = []
    for limit, count in sequences.items():
        positions = count * limit
        made.append(
            Limit(
                max_length=limit,
                rows_cut=round(sum(length > limit for length in lengths) / len(lengths), 6),
                tokens_lost=round(sum(max(0, length - limit) for length in lengths) / total, 6),
                filled=round(sum(min(length, limit) for length in some) / positions, 6),
                cost=round(positions / (sequences[chosen] * chosen), 6),
            )
        )
    return made


def recommend(made: Sequence[Limit]) -> tuple[Limit, str]:
    """The shortest limit that cuts at most MAX_CUT of the rows, and why."""
    best = next(one for one in made if one.rows_cut <= MAX_CUT)
    why = (
        f"{best.max_length:,} is the shortest of these that cuts at most {MAX_CUT:.0%} of the rows: "
        f"{best.rows_cut:.2%}, with {best.tokens_lost:.2%} of the tokens. Packed, an epoch costs about the same with a "
        "longer one, and a sequence needs more memory."
    )
    return best, why
