"""Compares an exported model with the trained adapter on validation rows. Every export must pass this comparison.

    reference = make_reference(model, rows, folder)     # the adapter's and the base model's logits and answers
    parity = measure(engine, reference)                 # of the exported model
    problems(parity, LIMITS["float32"])                 # [] if the exported model is the trained one

An engine runs a model: transformers here, or another program. It is given token ids, so that a difference in its
tokenizer is found separately from a difference in its computation.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from recipe.model.generate import answer, max_positions
from recipe.tokens.tokenizer import encode_continuations, encode_prompts

NUM_ROWS = 32
MAX_PROMPT_TOKENS = 1024  # longer rows are left out if there are enough others
SCORED_TOKENS = 64  # logits are compared at so many tokens of a row's answer
ANSWER_TOKENS = 32  # answers are compared up to this length
FIRST_TOKENS = 16
START_OF_TEXT = 8  # rows without a prompt are continued after so many tokens
NEARER = 0.5  # the divergence from the adapter is at most this share of that from the base model

Logits = np.ndarray[Any, np.dtype[np.float32]]


class Engine(Protocol):
    """A program that runs a model."""

    def prompt_ids(self, prompts: list[str]) -> list[list[int]]:
        """Return the token ids that this engine's tokenizer makes from prompts."""

    def logits(self, ids: list[int], start: int) -> Logits:
        """Return the logits that predict the tokens from index `start` on, with the shape (tokens, vocabulary)."""

    def answer(self, ids: list[int], max_new_tokens: int) -> list[int]:
        """Return the answer to a prompt with greedy decoding, without its end token."""


@dataclass(frozen=True)
class ParityRow:
    """A validation row. `ids` contains the prompt and the first tokens of the answer, which starts at `start`."""

    prompt: str
    ids: list[int]
    start: int
    has_prompt: bool


@dataclass(frozen=True)
class Reference:
    """What the trained adapter and the base model compute for the rows. The logits are in files in `folder`."""

    rows: list[ParityRow]
    answers: list[list[int]]
    base_answers: list[list[int]]
    folder: Path

    def logits(self, variant: str, index: int) -> Logits:
        """Return the logits of a row. `variant` is adapter or base."""
        loaded: Logits = np.load(self.folder / f"{variant}-{index}.npy")
        return loaded


@dataclass(frozen=True)
class Parity:
    """How far an exported model is from the trained adapter. Divergences are in nats, the mean over all positions."""

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
# a few hundredths. There, the distributions are compared, and only the first tokens of the answers.
LIMITS = {
    "exact": Limits(logit_difference=1e-3, equal_answers=1.0),
    "rounded": Limits(divergence=0.01, equal_first_tokens=0.95),
}


class TorchEngine:
    """Runs a model with transformers."""

    def __init__(self, model: Any, tokenizer: Any, meta: dict[str, Any]) -> None:
        self.model, self.tokenizer, self.meta = model, tokenizer, meta

    def prompt_ids(self, prompts: list[str]) -> list[list[int]]:
        """Return the token ids of prompts, encoded as for training."""
        return encode_prompts(self.tokenizer, prompts, chat=self.meta["chat_template"] is not None)

    def logits(self, ids: list[int], start: int) -> Logits:
        """Return the logits that predict the tokens from index `start` on, with the shape (tokens, vocabulary)."""
        import torch

        tokens = torch.tensor([ids], device=self.model.device)
        with torch.inference_mode():
            logits = self.model(input_ids=tokens, use_cache=False, logits_to_keep=len(ids) - start + 1).logits
        array: Logits = logits[0, :-1].float().cpu().numpy()
        return array

    def answer(self, ids: list[int], max_new_tokens: int) -> list[int]:
        """Return the answer to a prompt with greedy decoding, without its end token."""
        ends = {"pad_token_id": self.meta["pad_token_id"], "end_token_ids": self.meta["end_token_ids"]}
        return answer(self.model, [ids], max_new_tokens, **ends)[0]


def choose_rows(engine: TorchEngine, rows: list[dict[str, Any]]) -> list[ParityRow]:
    """Choose NUM_ROWS evenly spaced rows, each with a prompt and a completion, that fit into the model."""
    longest = min(MAX_PROMPT_TOKENS, max_positions(engine.model) - SCORED_TOKENS)
    prompts = engine.prompt_ids([row["prompt"] for row in rows])
    is_chat = engine.meta["chat_template"] is not None
    usable = [index for index, ids in enumerate(prompts) if len(ids) <= longest and rows[index]["completion"]]
    count = min(NUM_ROWS, len(usable))
    chosen = [usable[place * len(usable) // count] for place in range(count)]
    completions = encode_continuations(
        engine.tokenizer, [rows[index]["completion"] for index in chosen], special_tokens=is_chat
    )
    parity_rows = []
    for index, completion in zip(chosen, completions, strict=True):
        start = len(prompts[index])
        ids = [*prompts[index], *completion][: max(start, START_OF_TEXT) + SCORED_TOKENS]
        has_prompt = bool(rows[index]["prompt"])
        start = start if has_prompt else min(START_OF_TEXT, len(ids) - 1)
        if 0 < start < len(ids):
            parity_rows.append(ParityRow(rows[index]["prompt"], ids, start, has_prompt))
    return parity_rows


def make_reference(engine: TorchEngine, rows: list[ParityRow], folder: Path) -> Reference:
    """Compute the logits and answers of a PEFT model, with and without its adapter. Logits are stored in `folder`."""
    model, answers = engine.model, {}
    for variant in ("adapter", "base"):
        with model.disable_adapter() if variant == "base" else nullcontext():
            for index, row in enumerate(rows):
                np.save(folder / f"{variant}-{index}.npy", engine.logits(row.ids, row.start))
            answers[variant] = [engine.answer(row.ids[: row.start], ANSWER_TOKENS) for row in rows]
    return Reference(rows, answers["adapter"], answers["base"], folder)


def measure(engine: Engine, reference: Reference) -> Parity:
    """Compare a model with the trained adapter, row by row."""
    rows, largest = reference.rows, 0.0
    divergences: list[float] = []
    from_base: list[float] = []
    for index, row in enumerate(rows):
        wanted, base, found = (
            *(reference.logits(name, index) for name in ("adapter", "base")),
            engine.logits(row.ids, row.start),
        )
        width = min(wanted.shape[1], found.shape[1])  # some engines pad the vocabulary
        largest = max(largest, float(np.abs(wanted[:, :width] - found[:, :width]).max()))
        divergences += divergence(wanted[:, :width], found[:, :width])
        from_base += divergence(base[:, :width], found[:, :width])
    prompts = [row for row in rows if row.has_prompt]
    ids = engine.prompt_ids([row.prompt for row in prompts])
    answers = [engine.answer(row.ids[: row.start], ANSWER_TOKENS) for row in rows]
    first = [list(_first_tokens(*pair)) for pair in zip(reference.answers, answers, strict=True)]
    return Parity(
        rows=len(rows),
        prompts_with_equal_ids=len(rows) - len(prompts)
        + sum(found == row.ids[: row.start] for found, row in zip(ids, prompts, strict=True)),
        largest_logit_difference=largest,
        mean_divergence=float(np.mean(divergences)),
        mean_divergence_from_base=float(np.mean(from_base)),
        equal_answers=sum(a == b for a, b in zip(reference.answers, answers, strict=True)),
        equal_first_tokens=float(np.mean([equal for row in first for equal in row] or [True])),
        answers_that_differ_from_base=sum(a != b for a, b in zip(reference.base_answers, answers, strict=True)),
    )  # fmt: skip


def divergence(wanted: Logits, found: Logits) -> list[float]:
    """Return the Kullback-Leibler divergence of each position's distributions, in nats. Shape: (tokens, vocabulary)."""
    log_p, log_q = (_log_softmax(logits.astype(np.float64)) for logits in (wanted, found))
    values: list[float] = (np.exp(log_p) * (log_p - log_q)).sum(axis=1).tolist()
    return values


def problems(parity: Parity, limits: Limits) -> list[str]:
    """Return a sentence for each limit that a model exceeds."""
    found, rows = [], parity.rows
    if not rows:
        return ["there are no validation rows with an answer to compare."]
    if parity.prompts_with_equal_ids < rows:
        found.append(f"only {parity.prompts_with_equal_ids} of {rows} prompts have the token ids of the training.")
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
    if not parity.mean_divergence < NEARER * parity.mean_divergence_from_base:
        found.append(
            f"it is not clearly nearer to the adapter (divergence {parity.mean_divergence:.2g}) than to the base model "
            f"({parity.mean_divergence_from_base:.2g}), so it may ignore the adapter."
        )
    return found


def _log_softmax(logits: Any) -> Any:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _first_tokens(wanted: list[int], found: list[int]) -> Iterator[bool]:
    """Yield, for each of the first tokens of the adapter's answer and for its end, whether the other answer has it."""
    for place in range(min(FIRST_TOKENS, len(wanted) + 1)):
        yield wanted[place : place + 1] == found[place : place + 1]
