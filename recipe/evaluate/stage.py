"""The evaluate stage compares the base model and the adapter on the validation rows.

It reads data/prepared/, models/base/, models/adapter/ and metrics/train.json, and writes these files:
    metrics/evaluate.json                   loss, perplexity, token accuracy and exact match of both variants, the
                                            differences with 95% intervals, and the scores of evaluate.tasks
    reports/evaluation/index.html           the report
    reports/evaluation/*.svg                the charts in the report
    reports/evaluation/groups.json          the measures by category and by length
    reports/evaluation/generations.jsonl    prompts, references, and the answers of both variants

    recipe evaluate
"""

import json
from pathlib import Path
from typing import Any

from recipe.core.io import check_count, new_folder, read_json, read_json_lines, write_json, write_text
from recipe.core.paths import Paths
from recipe.core.services import Progress, Services
from recipe.evaluate.lm_eval import load_tasks, run_tasks
from recipe.evaluate.params import EvaluateParams
from recipe.evaluate.report import about, pictures, report_page
from recipe.evaluate.score import Scores, batches, score
from recipe.model.generate import answer, max_positions
from recipe.model.load import load_trained
from recipe.model.memory import out_of_memory
from recipe.model.processor import be_deterministic, pin_processor
from recipe.report.comparison import VARIANTS, Groups, ScoredRow, by_group, headline, overall
from recipe.tokens.packing import read_sequences
from recipe.tokens.tokenizer import encode_prompts

NUM_THREADS = 2  # fixed, because a different number changes the order of additions, and thus the last digits


def generate(
    model: Any, tokenizer: Any, ids: list[list[int]], params: EvaluateParams, meta: dict[str, Any], progress: Progress,
    label: str,
) -> list[str]:  # fmt: skip
    """Generate an answer to each prompt in `ids` with greedy decoding. Return the answers in the same order.

    A prompt is a list of token ids.
    """
    ends = {"pad_token_id": meta["pad_token_id"], "end_token_ids": meta["end_token_ids"]}
    texts = [""] * len(ids)
    groups = batches([len(prompt_ids) + params.max_new_tokens for prompt_ids in ids], params.batch_tokens)
    for indices in progress(iter(groups), label, len(groups)):
        answers = answer(model, [ids[index] for index in indices], params.max_new_tokens, **ends)
        for index, tokens in zip(indices, answers, strict=True):
            texts[index] = tokenizer.decode(tokens, skip_special_tokens=True)
    return texts


def compared_rows(
    lengths: list[int], categories: list[str], scores: dict[str, Scores], answered: dict[int, dict[str, Any]]
) -> list[ScoredRow]:
    """Combine the scores of both variants for each validation row.

    `answered` maps row indices to rows of generations.jsonl.
    """
    rows = []
    for index, (length, category) in enumerate(zip(lengths, categories, strict=True)):
        base, adapter = (scores[variant][index] for variant in VARIANTS)
        generation = answered.get(index)
        matches = None if generation is None else (generation["base_matches"], generation["adapter_matches"])
        rows.append(ScoredRow(category, length, base[2], (base[0], adapter[0]), (base[1], adapter[1]), matches))
    return rows


def evaluate(params: EvaluateParams, paths: Paths, progress: Progress) -> dict[str, Any]:
    """Score the base model and the adapter, write the metrics and the report, and return the metrics.

    Raises TrainingError if memory runs out.
    """
    with out_of_memory("the evaluation", params.memory_advice()):
        return _evaluate(params, paths, progress)


def _evaluate(params: EvaluateParams, paths: Paths, progress: Progress) -> dict[str, Any]:
    tasks = load_tasks(params.tasks) if params.tasks else {}
    be_deterministic(NUM_THREADS)
    manifest, meta = read_json(paths.base / "manifest.json"), read_json(paths.prepared / "meta.json")
    train_metrics = read_json(paths.train_metrics)
    tokenizer, model = load_trained(
        manifest, paths.folder, paths.base / "tokenizer", paths.adapter, train_metrics["quantization"]
    )
    rows = read_sequences(paths.prepared / "validation.arrow")
    references = read_json_lines(paths.prepared / "validation.jsonl")
    check_count(paths.prepared / "validation.arrow", len(rows), meta["rows"]["validation"])
    check_count(paths.prepared / "validation.jsonl", len(references), meta["rows"]["validation"])

    pad = meta["pad_token_id"]
    scores = {"adapter": score(model, rows, pad, params.batch_tokens, progress)}
    with model.disable_adapter():
        scores["base"] = score(model, rows, pad, params.batch_tokens, progress)

    with_prompt = [index for index, reference in enumerate(references) if reference["prompt"]]
    count = min(params.max_generations, len(with_prompt))
    selected = [with_prompt[index * len(with_prompt) // count] for index in range(count)]  # evenly spaced
    # A truncated row can have a prompt that is longer than the model's limit.
    texts = [references[index]["prompt"] for index in selected]
    ids = encode_prompts(tokenizer, texts, chat=meta["chat_template"] is not None)
    selected = [index for index, tokens in zip(selected, ids, strict=True) if len(tokens) < max_positions(model)]
    prompts = [tokens for tokens in ids if len(tokens) < max_positions(model)]
    answers = {"adapter": generate(model, tokenizer, prompts, params, meta, progress, "adapter answers")}
    task_scores = {"adapter": run_tasks(tasks, model, tokenizer)}
    with model.disable_adapter():
        answers["base"] = generate(model, tokenizer, prompts, params, meta, progress, "base answers")
        task_scores["base"] = run_tasks(tasks, model, tokenizer)
    generations = []
    for position, index in enumerate(selected):
        row = references[index] | {variant: answers[variant][position] for variant in VARIANTS}
        matches = {f"{variant}_matches": row[variant].strip() == row["completion"].strip() for variant in VARIANTS}
        generations.append(row | matches)
    lengths = [int(row["seq_lengths"][0]) for row in rows]
    categories = [reference["category"] for reference in references]
    compared = compared_rows(lengths, categories, scores, dict(zip(selected, generations, strict=True)))
    groups = by_group(compared)
    results: dict[str, Any] = {"rows": len(rows), "prompts": len(selected), **overall(compared)}
    if tasks:
        results["tasks"] = {
            task: {variant: task_scores[variant][task] for variant in VARIANTS} for task in task_scores["base"]
        }
    write_report(paths.evaluation, results, groups, generations, about(manifest["id"], meta, train_metrics))
    write_json(paths.evaluate_metrics, results)
    return results


def write_report(
    folder: Path, results: dict[str, Any], groups: Groups, generations: list[dict[str, Any]], description: str
) -> None:
    """Write the generated answers, the scores by group, the charts and the HTML report."""
    with new_folder(folder) as target:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in generations)
        write_text(target / "generations.jsonl", "".join(lines))
        write_json(target / "groups.json", groups)
        charts = pictures(groups)
        for name, chart in charts.items():
            write_text(target / f"{name}.svg", chart)
        write_text(target / "index.html", report_page(results, groups, generations, charts, description))


def run(params: dict[str, Any], paths: Paths, services: Services) -> str:
    """Run the evaluate stage, and return a sentence that says whether the adapter is better than the base model."""
    pin_processor()
    return headline(evaluate(params["evaluate"], paths, services.progress))
