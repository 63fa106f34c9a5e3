"""Stage evaluate: the base beside the adapter, on the validation rows.

Reads data/prepared/, models/base/ and models/adapter/. Makes metrics/evaluate.json (loss, perplexity, token accuracy,
exact match, each for both, and their differences with 95% intervals; the tasks of lm-evaluation-harness that
evaluate.tasks names) and reports/evaluation/ (index.html and its pictures; groups.json, the measures by category and by
length; generations.jsonl).

    python -m recipe evaluate
"""

import json
from typing import Any

from recipe.core.io import new_folder, read_json, read_json_lines, write_json, write_text
from recipe.core.paths import Paths
from recipe.core.services import Progress, Services
from recipe.evaluate.lm_eval import load_tasks, run_tasks
from recipe.evaluate.params import EvaluateParams
from recipe.evaluate.report import about, pictures, report_page
from recipe.model.generate import answer
from recipe.model.load import load_adapter, load_base
from recipe.model.processor import be_deterministic, pin_processor
from recipe.report.comparison import VARIANTS, ScoredRow, by_group, headline, overall
from recipe.tokens.packing import IGNORED, collate, read_sequences
from recipe.tokens.tokenizer import encode_prompts, load_tokenizer

Scores = list[tuple[float, int, int]]  # of each row: the sum of its losses, how many tokens are right, and of how many
NUM_THREADS = 2  # fixed: another number sums in another order, and gives other last digits


def batches(lengths: list[int], batch_tokens: int) -> list[list[int]]:
    """Indices of rows in batches of like length, each at most `batch_tokens` tokens when padded (or one row)."""
    made: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (lengths[index], index)):
        if made and (len(made[-1]) + 1) * lengths[index] <= batch_tokens:
            made[-1].append(index)
        else:
            made.append([index])
    return made


def score(model: Any, rows: Any, pad_token_id: int, batch_tokens: int, progress: Progress) -> Scores:
    """For each row: the sum of its trained tokens' losses (nats), how many the model ranks first, and their number."""
    import torch
    from torch.nn.functional import cross_entropy

    scores: Scores = [(0.0, 0, 0)] * len(rows)
    lengths = [int(row["seq_lengths"][0]) for row in rows]
    chosen = batches(lengths, batch_tokens)
    for indices in progress(iter(chosen), "loss", len(chosen)):
        batch = collate([rows[index] for index in indices], pad_token_id)
        labels = batch["labels"][:, 1:].to(model.device)
        with torch.inference_mode():
            # Padding stands on the right, where causal attention keeps every real token from seeing it.
            logits = model(input_ids=batch["input_ids"].to(model.device), use_cache=False).logits[:, :-1]
            for index, row_logits, row_labels in zip(indices, logits, labels, strict=True):
                trained = row_labels != IGNORED
                picked, wanted = row_logits[trained].float(), row_labels[trained]
                loss = cross_entropy(picked, wanted, reduction="sum").item()
                scores[index] = (loss, int((picked.argmax(-1) == wanted).sum()), len(wanted))
    return scores


def generate(
    model: Any, tokenizer: Any, prompts: list[str], params: EvaluateParams, meta: dict[str, Any], progress: Progress,
    what: str,
) -> list[str]:  # fmt: skip
    """Greedy answers in the prompts' order."""
    ids = encode_prompts(tokenizer, prompts, chat=meta["chat_template"] is not None)
    ends = {"pad_token_id": meta["pad_token_id"], "end_token_ids": meta["end_token_ids"]}
    made = [""] * len(prompts)
    chosen = batches([len(one) + params.max_new_tokens for one in ids], params.batch_tokens)
    for indices in progress(iter(chosen), what, len(chosen)):
        answers = answer(model, [ids[index] for index in indices], params.max_new_tokens, **ends)
        for index, tokens in zip(indices, answers, strict=True):
            made[index] = tokenizer.decode(tokens, skip_special_tokens=True)
    return made


def compared_rows(
    lengths: list[int], categories: list[str], scores: dict[str, Scores], answered: dict[int, dict[str, Any]]
) -> list[ScoredRow]:
    """The validation rows with what base and adapter made of them; `answered` by the index of the row."""
    made = []
    for index, (length, category) in enumerate(zip(lengths, categories, strict=True)):
        base, adapter = (scores[variant][index] for variant in VARIANTS)
        one = answered.get(index)
        matches = None if one is None else (one["base_matches"], one["adapter_matches"])
        made.append(ScoredRow(category, length, base[2], (base[0], adapter[0]), (base[1], adapter[1]), matches))
    return made


def evaluate(params: EvaluateParams, paths: Paths, progress: Progress) -> dict[str, Any]:
    """Score both, write metrics and report, and return the metrics."""
    tasks = load_tasks(params.tasks) if params.tasks else {}
    be_deterministic(NUM_THREADS)
    manifest, meta = read_json(paths.base / "manifest.json"), read_json(paths.prepared / "meta.json")
    train_metrics = read_json(paths.train_metrics)
    tokenizer = load_tokenizer(paths.base / "tokenizer")
    loaded = load_base(manifest, paths.folder, len(tokenizer), train_metrics["quantization"])
    model = load_adapter(loaded, paths.adapter, manifest)
    rows = read_sequences(paths.prepared / "validation.arrow")
    answers = read_json_lines(paths.prepared / "validation.jsonl")

    pad = meta["pad_token_id"]
    scores = {"adapter": score(model, rows, pad, params.batch_tokens, progress)}
    with model.disable_adapter():
        scores["base"] = score(model, rows, pad, params.batch_tokens, progress)

    promptable = [index for index, one in enumerate(answers) if one["prompt"]]
    count = min(params.max_generations, len(promptable))
    chosen = [promptable[index * len(promptable) // count] for index in range(count)]  # evenly spread over the rows
    prompts = [answers[index]["prompt"] for index in chosen]
    made = {"adapter": generate(model, tokenizer, prompts, params, meta, progress, "adapter answers")}
    task_scores = {"adapter": run_tasks(tasks, model, tokenizer)}
    with model.disable_adapter():
        made["base"] = generate(model, tokenizer, prompts, params, meta, progress, "base answers")
        task_scores["base"] = run_tasks(tasks, model, tokenizer)
    generations = []
    for place, index in enumerate(chosen):
        one = answers[index] | {variant: made[variant][place] for variant in VARIANTS}
        matches = {f"{variant}_matches": one[variant].strip() == one["completion"].strip() for variant in VARIANTS}
        generations.append(one | matches)
    lengths = [int(row["seq_lengths"][0]) for row in rows]
    categories = [one["category"] for one in answers]
    compared = compared_rows(lengths, categories, scores, dict(zip(chosen, generations, strict=True)))
    groups = by_group(compared)
    results: dict[str, Any] = {
        "rows": len(rows),
        "prompts": count,
        **overall(compared),
    }
    if tasks:
        results["tasks"] = {
            task: {variant: task_scores[variant][task] for variant in VARIANTS} for task in task_scores["base"]
        }
    with new_folder(paths.evaluation) as target:
        lines = (json.dumps(one, ensure_ascii=False) + "\n" for one in generations)
        write_text(target / "generations.jsonl", "".join(lines))
        write_json(target / "groups.json", groups)
        drawn = pictures(groups)
        for name, picture in drawn.items():
            write_text(target / f"{name}.svg", picture)
        said = about(manifest["id"], meta, train_metrics)
        write_text(target / "index.html", report_page(results, groups, generations, drawn, said))
    write_json(paths.evaluate_metrics, results)
    return results


def run(params: dict[str, Any], paths: Paths, services: Services) -> str:
    """`evaluate`: whether the adapter is better than its base, in a sentence."""
    pin_processor()
    return headline(evaluate(params["evaluate"], paths, services.progress))
