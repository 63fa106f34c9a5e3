"""Says how far an exported model may be from the trained adapter.

problems(parity, LIMITS["exact"])    # [] if the exported model is the trained one
"""

from dataclasses import asdict, dataclass
from typing import Any

FIRST_TOKENS = 16
NEARER = 0.5  # the divergence from the adapter is at most this share of that from the base model


@dataclass(frozen=True)
class Parity:
    """How far an exported model is from the trained adapter.

    Differences are those of the logarithms of the probabilities. Divergences are in nats, the mean over all positions.
    """

    rows: int
    prompts_with_equal_ids: int
    largest_logit_difference: float
    mean_divergence: float
    mean_divergence_from_base: float
    equal_answers: int
    equal_first_tokens: float
    answers_that_differ_from_base: int

    def as_json(self) -> dict[str, Any]:
        """Return the values with at most six significant digits."""
        return {name: float(f"{value:.6g}") if isinstance(value, float) else value
                for name, value in asdict(self).items()}  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What an exported model may differ by. None: not checked."""

    logit_difference: float | None = None
    divergence: float | None = None
    equal_answers: float | None = None
    equal_first_tokens: float | None = None

    def text(self) -> str:
        """Describe the limits in a few words, for a table."""
        parts = []
        if self.logit_difference is not None:
            parts.append(f"logits within {self.logit_difference:g}")
        if self.divergence is not None:
            parts.append(f"divergence at most {self.divergence:g}")
        if self.equal_answers is not None:
            parts.append(f"{self.equal_answers:.0%} equal answers")
        if self.equal_first_tokens is not None:
            parts.append(f"{self.equal_first_tokens:.0%} equal first tokens")
        return ", ".join(parts)


# In fp32, only the order of additions differs. bf16 and q8_0 round each weight to about 8 bits, which shifts logits by
# a few hundredths. There, the distributions are compared, and only the first tokens of the answers. Weights of 4 to 6
# bits differ visibly; their limit only says that the model is still the same.
LIMITS = {
    "exact": Limits(logit_difference=1e-3, equal_answers=1.0),
    "rounded": Limits(divergence=0.01, equal_first_tokens=0.95),
    "small": Limits(divergence=0.1),
}


def limits_for(precision: str, quantization: str, tolerance: float | None) -> Limits:
    """Return the limits for a precision of an export. A model that was trained quantized is never exported exactly."""
    if tolerance is not None:
        return Limits(divergence=tolerance)
    if precision == "float32" and quantization == "none":
        return LIMITS["exact"]
    return LIMITS["rounded" if precision in ("float32", "bfloat16", "q8_0") else "small"]


def problems(parity: Parity, limits: Limits, *, same_ids: bool = True) -> list[str]:
    """Return a sentence for each limit that a model exceeds, and for each difference that no limit allows.

    With `same_ids=False`, the token ids of prompts may differ.
    """
    return [*differences(parity, same_ids=same_ids), *exceeded(parity, limits)]


def differences(parity: Parity, *, same_ids: bool = True) -> list[str]:
    """Return a sentence for each difference that is an error, whatever the limits are."""
    found, rows = [], parity.rows
    if not rows:
        return ["there are no validation rows with an answer to compare."]
    if same_ids and parity.prompts_with_equal_ids < rows:
        found.append(f"only {parity.prompts_with_equal_ids} of {rows} prompts have the token ids of the training.")
    if not parity.mean_divergence < NEARER * parity.mean_divergence_from_base:
        found.append(
            f"it is not clearly nearer to the adapter (divergence {parity.mean_divergence:.2g}) than to the base model "
            f"({parity.mean_divergence_from_base:.2g}), so it may ignore the adapter."
        )
    return found


def exceeded(parity: Parity, limits: Limits) -> list[str]:
    """Return a sentence for each limit that a model exceeds."""
    found, rows = [], parity.rows
    if limits.logit_difference is not None and not parity.largest_logit_difference <= limits.logit_difference:
        found.append(
            f"the largest difference of a logit is {parity.largest_logit_difference:.2g} "
            f"(at most {limits.logit_difference:g})."
        )
    if limits.divergence is not None and not parity.mean_divergence <= limits.divergence:
        found.append(f"the mean divergence is {parity.mean_divergence:.2g} nats (at most {limits.divergence:g}).")
    if limits.equal_answers is not None and parity.equal_answers < limits.equal_answers * rows:
        found.append(f"only {parity.equal_answers} of {rows} answers are those of the adapter.")
    if limits.equal_first_tokens is not None and parity.equal_first_tokens < limits.equal_first_tokens:
        found.append(
            f"{parity.equal_first_tokens:.1%} of the first {FIRST_TOKENS} tokens of the answers are those of the "
            f"adapter (at least {limits.equal_first_tokens:.0%})."
        )
    return found
