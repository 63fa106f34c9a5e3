"""Scores the rows of a set, and the generated answers to their prompts, with and without the adapter.

compared, generations = evaluate_rows(loaded, rows, references, params, progress)
"""

from dataclasses import dataclass
from typing import Any

from recipe.core.services import Progress
from recipe.evaluate.params import EvaluateParams
from recipe.evaluate.score import Scores, batches, score
from recipe.model.generate import answer, max_positions
from recipe.report.comparison import VARIANTS, ScoredRow
from recipe.tokens.tokenizer import encode_prompts


@dataclass(frozen=True)
class Loaded:
    """A PEFT model, its tokenizer, and meta.json of the prepared rows."""

    model: Any
    tokenizer: Any
    meta: dict[str, Any]


def evaluate_rows(
    loaded: Loaded, rows: Any, references: list[dict[str, Any]], params: EvaluateParams, progress: Progress, *,
    name: str = "", checkable: bool = False,
) -> tuple[list[ScoredRow], list[dict[str, Any]]]:  # fmt: skip
    """Score all rows with both variants, and generate answers to at most params.max_generations of the prompts.

    `rows` contains the tokens, and `references` the prompts and completions in the same order. With `checkable`, only
    prompts whose reference fits into an answer of params.max_new_tokens are answered. `name` appears in the progress.
    Returns the scores of all rows, and the references that were answered, each with its answers.
    """
    model, pad = loaded.model, loaded.meta["pad_token_id"]
    selected, prompts = _select(loaded, references, params, checkable=checkable)
    label = f"{name} " if name else ""
    scores: dict[str, Scores] = {}
    answers: dict[str, list[str]] = {}

    def run(variant: str) -> None:
        scores[variant] = score(model, rows, pad, params.batch_tokens, progress)
        answers[variant] = generate(loaded, prompts, params, progress, f"{label}{variant} answers")

    run("adapter")
    with model.disable_adapter():
        run("base")
    similarity = {
        variant: chrf(texts, [references[index]["completion"] for index in selected])
        for variant, texts in answers.items()
    }
    answered, generations = {}, []
    for position, index in enumerate(selected):
        row = references[index] | {variant: answers[variant][position] for variant in VARIANTS}
        matches = {f"{variant}_matches": row[variant].strip() == row["completion"].strip() for variant in VARIANTS}
        generations.append(row | matches)
        answered[index] = generations[-1] | {f"{variant}_chrf": similarity[variant][position] for variant in VARIANTS}
    lengths = [int(row["seq_lengths"][0]) for row in rows]
    return compared_rows(lengths, [reference["category"] for reference in references], scores, answered), generations


def _select(
    loaded: Loaded, references: list[dict[str, Any]], params: EvaluateParams, *, checkable: bool
) -> tuple[list[int], list[list[int]]]:
    """Return the indices of the rows to answer, evenly spaced, and their prompts as token ids."""
    candidates = [index for index, reference in enumerate(references) if reference["prompt"]]
    if checkable:
        encode = loaded.tokenizer
        candidates = [
            index for index in candidates
            if len(encode(references[index]["completion"], add_special_tokens=False)["input_ids"])
            <= params.max_new_tokens
        ]  # fmt: skip
    count = min(params.max_generations, len(candidates))
    selected = [candidates[index * len(candidates) // count] for index in range(count)]
    texts = [references[index]["prompt"] for index in selected]
    ids = encode_prompts(loaded.tokenizer, texts, chat=loaded.meta["chat_template"] is not None)
    # A truncated row can have a prompt that is longer than the model's limit.
    fits = [len(tokens) < max_positions(loaded.model) for tokens in ids]
    return (
        [index for index, fit in zip(selected, fits, strict=True) if fit],
        [tokens for tokens, fit in zip(ids, fits, strict=True) if fit],
    )


def generate(loaded: Loaded, ids: list[list[int]], params: EvaluateParams, progress: Progress, label: str) -> list[str]:
    """Generate an answer to each prompt in `ids` with greedy decoding. Return the answers in the same order.

    A prompt is a list of token ids.
    """
    ends = {"pad_token_id": loaded.meta["pad_token_id"], "end_token_ids": loaded.meta["end_token_ids"]}
    texts = [""] * len(ids)
    groups = batches([len(prompt_ids) + params.max_new_tokens for prompt_ids in ids], params.batch_tokens)
    for indices in progress(iter(groups), label, len(groups)):
        answers = answer(loaded.model, [ids[index] for index in indices], params.max_new_tokens, **ends)
        for index, tokens in zip(indices, answers, strict=True):
            texts[index] = loaded.tokenizer.decode(tokens, skip_special_tokens=True)
    return texts


def chrf(answers: list[str], references: list[str]) -> list[float]:
    """Return the chrF of each answer against its reference, from 0 to 100: the F2 score of shared character n-grams.

    Source: Popović 2015, "chrF: character n-gram F-score for automatic MT evaluation", with sacrebleu's defaults
    (n-grams of 1 to 6 characters, without spaces). The score of two empty texts is 100, because they are equal.
    """
    from sacrebleu.metrics import CHRF

    metric = CHRF()
    return [
        100.0 if text.strip() == reference.strip() else round(metric.sentence_score(text, [reference]).score, 4)
        for text, reference in zip(answers, references, strict=True)
    ]


def compared_rows(
    lengths: list[int], categories: list[str], scores: dict[str, Scores], answered: dict[int, dict[str, Any]]
) -> list[ScoredRow]:
    """Combine the scores of both variants for each row.

    `answered` maps row indices to rows of generations.jsonl with the chrF of both answers.
    """
    rows = []
    for index, (length, category) in enumerate(zip(lengths, categories, strict=True)):
        base, adapter = (scores[variant][index] for variant in VARIANTS)
        matches, similarity = None, None
        if index in answered:
            found = answered[index]
            matches = (found["base_matches"], found["adapter_matches"])
            similarity = (found["base_chrf"], found["adapter_chrf"])
        rows.append(
            ScoredRow(category, length, base[2], (base[0], adapter[0]), (base[1], adapter[1]), matches, similarity)
        )
    return rows
