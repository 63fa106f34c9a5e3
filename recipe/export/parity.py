"""Compares an exported model with the trained adapter on validation rows. Every export must pass this comparison.

    reference = make_reference(model, rows, folder)     # the adapter's and the base model's logits and answers
    parity = measure(engine, reference)                 # of the exported model
    problems(parity, LIMITS["exact"])                   # in limits.py; [] if the exported model is the trained one

An engine runs a model: transformers here, or another program. It is given token ids, so that a difference in its
tokenizer is found separately from a difference in its computation.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from recipe.export.limits import FIRST_TOKENS, Parity
from recipe.model.generate import answer, max_positions
from recipe.tokens.tokenizer import encode_continuations, encode_prompts

NUM_ROWS = 32
MAX_PROMPT_TOKENS = 1024  # longer rows are left out if there are enough others
SCORED_TOKENS = 64  # logits are compared at so many tokens of a row's answer
ANSWER_TOKENS = 32  # answers are compared up to this length
START_OF_TEXT = 8  # rows without a prompt are continued after so many tokens

Logits = np.ndarray[Any, np.dtype[np.float32]]


class Engine(Protocol):
    """A program that runs a model."""

    def prompt_ids(self, prompts: list[str]) -> list[list[int]]:
        """Return the token ids that this engine's tokenizer makes from prompts."""

    def logits(self, ids: list[int], start: int) -> Logits:
        """Return the logits that predict the tokens from index `start` on, with the shape (tokens, vocabulary).

        An engine may leave out the last tokens, and may add a constant to all logits of a token.
        """

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
    """What the trained adapter and the base model compute for the rows. The logits are in files in `folder`.

    `check` is a conversation by which a server is checked (check.py), or None if the answers do not differ.
    """

    rows: list[ParityRow]
    answers: list[list[int]]
    base_answers: list[list[int]]
    folder: Path
    check: dict[str, Any] | None = None

    def logits(self, variant: str, index: int) -> Logits:
        """Return the logits of a row. `variant` is adapter or base."""
        loaded: Logits = np.load(self.folder / f"{variant}-{index}.npy")
        return loaded


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
        found = engine.logits(row.ids, row.start)
        wanted, base = (reference.logits(name, index)[: len(found)] for name in ("adapter", "base"))
        width = min(wanted.shape[1], found.shape[1])  # some engines pad the vocabulary
        wanted, base, found = (log_softmax(logits[:, :width]) for logits in (wanted, base, found))
        largest = max(largest, float(np.abs(wanted - found).max()))
        divergences += divergence(wanted, found)
        from_base += divergence(base, found)
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


def divergence(log_p: Any, log_q: Any) -> list[float]:
    """Return the Kullback-Leibler divergence of each position's distributions, in nats.

    The arguments are logarithms of probabilities, with the shape (tokens, vocabulary).
    """
    values: list[float] = (np.exp(log_p) * (log_p - log_q)).sum(axis=1).tolist()
    return values


def log_softmax(logits: Logits) -> Any:
    """Return the logarithms of the probabilities, in fp64. A constant that is added to the logits changes nothing."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _first_tokens(wanted: list[int], found: list[int]) -> Iterator[bool]:
    """Yield, for each of the first tokens of the adapter's answer and for its end, whether the other answer has it."""
    for place in range(min(FIRST_TOKENS, len(wanted) + 1)):
        yield wanted[place : place + 1] == found[place : place + 1]
