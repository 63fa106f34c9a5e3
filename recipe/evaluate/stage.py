"""The evaluate stage compares the base model and the adapter on the validation rows.

It reads data/prepared/, models/base/, models/adapter/ and metrics/train.json, and writes these files:
    metrics/evaluate.json                   loss, perplexity, token accuracy, exact match and chrF of both variants, the
                                            differences with 95% intervals, and the scores of evaluate.tasks
    reports/evaluation/index.html           the report
    reports/evaluation/*.svg                the charts in the report
    reports/evaluation/groups.json          the measures by category and by length
    reports/evaluation/rows.csv             the scores of each row, from which `recipe compare` compares versions
    reports/evaluation/generations.jsonl    prompts, references, and the answers of both variants
    reports/evaluation/general.jsonl        the same for the rows of data.general, if there are any

    recipe evaluate
"""

import json
from pathlib import Path
from typing import Any

from recipe.core.io import check_count, new_folder, read_json, read_json_lines, write_json, write_text
from recipe.core.paths import Paths
from recipe.core.services import Progress, Services
from recipe.evaluate.answers import Loaded, evaluate_rows
from recipe.evaluate.lm_eval import load_tasks, run_tasks
from recipe.evaluate.params import EvaluateParams
from recipe.evaluate.report import about, report_page
from recipe.model.load import load_trained
from recipe.model.memory import out_of_memory
from recipe.model.processor import be_deterministic, pin_processor
from recipe.report.comparison import VARIANTS, by_group, headline, overall
from recipe.report.row_scores import FILE, GENERAL, RowSets, write_row_scores
from recipe.report.score_tables import pictures
from recipe.tokens.packing import read_sequences

NUM_THREADS = 2  # fixed, because a different number changes the order of additions, and thus the last digits


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
    loaded = Loaded(model, tokenizer, meta)
    rows, references = _read_rows(paths, "validation", meta["rows"]["validation"])
    compared, generations = evaluate_rows(loaded, rows, references, params, progress)
    sets, generated = {"validation": compared}, {"generations": generations}
    results: dict[str, Any] = {"rows": len(rows), "prompts": len(generations), **overall(compared)}
    if general := meta.get("general"):
        rows, references = _read_rows(paths, GENERAL, general["rows"])
        compared, generations = evaluate_rows(loaded, rows, references, params, progress, name=GENERAL, checkable=True)
        sets[GENERAL], generated[GENERAL] = compared, generations
        results[GENERAL] = {"rows": len(rows), "prompts": len(generations), **overall(compared)}
    task_scores = {"adapter": run_tasks(tasks, model, tokenizer)}
    with model.disable_adapter():
        task_scores["base"] = run_tasks(tasks, model, tokenizer)
    if tasks:
        results["tasks"] = {
            task: {variant: task_scores[variant][task] for variant in VARIANTS} for task in task_scores["base"]
        }
    write_report(paths.evaluation, results, sets, generated, about(manifest["id"], meta, train_metrics))
    write_json(paths.evaluate_metrics, results)
    return results


def _read_rows(paths: Paths, name: str, expected: int) -> tuple[Any, list[dict[str, Any]]]:
    """Return the tokens of a set of prepared rows, and their prompts and completions. Raises DataError if damaged."""
    rows = read_sequences(paths.prepared / f"{name}.arrow")
    references = read_json_lines(paths.prepared / f"{name}.jsonl")
    check_count(paths.prepared / f"{name}.arrow", len(rows), expected)
    check_count(paths.prepared / f"{name}.jsonl", len(references), expected)
    return rows, references


def write_report(
    folder: Path, results: dict[str, Any], sets: RowSets, generated: dict[str, list[dict[str, Any]]], description: str
) -> None:
    """Write the generated answers, the scores by row and by group, the charts and the HTML report.

    `generated` maps the name of each .jsonl file to its rows.
    """
    groups = by_group(sets["validation"])
    with new_folder(folder) as target:
        for name, rows in generated.items():
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_text(target / f"{name}.jsonl", "".join(lines))
        write_row_scores(target / FILE, sets)
        write_json(target / "groups.json", groups)
        charts = pictures(groups)
        for name, chart in charts.items():
            write_text(target / f"{name}.svg", chart)
        general = by_group(sets[GENERAL]) if GENERAL in sets else None
        page = report_page(results, groups, generated["generations"], charts, description, general)
        write_text(target / "index.html", page)


def run(params: dict[str, Any], paths: Paths, services: Services) -> str:
    """Run the evaluate stage, and return a sentence that says whether the adapter is better than the base model."""
    pin_processor()
    return headline(evaluate(params["evaluate"], paths, services.progress))
