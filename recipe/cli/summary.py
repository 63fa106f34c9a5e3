"""Implements `recipe summary`, which prints the results of a run and where to find them.

`make demo` runs this command after the pipeline.
"""

from typing import Any

from recipe.cli.run_metadata import read_notes
from recipe.core.format import shorten
from recipe.core.io import read_json, read_json_lines
from recipe.core.paths import Paths, make_command
from recipe.report.comparison import VARIANTS, format_score, headline
from recipe.report.row_scores import GENERAL
from recipe.text.alpaca import question_in

NUM_SHOWN = 3


def pick(generations: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return up to `count` generations, spread evenly over the file, with no more than one from each category."""
    rows = list({row["category"] or index: row for index, row in enumerate(generations)}.values())
    return [rows[index * len(rows) // count] for index in range(min(count, len(rows)))]


def summary_text(paths: Paths, model_name: str) -> str:
    """Return the text of the summary.

    The summary contains the headline, the scores, up to three prompts with both answers, the duration of each stage,
    and the locations of the results.
    """
    results = read_json(paths.evaluate_metrics)
    lines = [headline(results), ""]
    lines.append(f"{'':9}{'loss':>9}{'perplexity':>12}{'token acc.':>12}{'exact':>9}{'chrF':>7}")
    for variant in VARIANTS:
        scores = results[variant]
        exact, chrf = (format_score(measure, scores[measure]) for measure in ("exact_match", "chrf"))
        lines.append(
            f"{variant:9}{scores['loss']:9.3f}{scores['perplexity']:12,.2f}{scores['token_accuracy']:12.1%}{exact:>9}"
            f"{chrf:>7}"
        )
    if general := results.get(GENERAL):
        losses = (format_score("loss", general[variant]["loss"]) for variant in VARIANTS)
        lines.append("loss on {:,} general rows: base {}, adapter {}".format(general["rows"], *losses))
    for row in pick(read_json_lines(paths.evaluation / "generations.jsonl"), NUM_SHOWN):
        question = " | ".join(question_in(row["prompt"]).split("\n\n"))
        lines += ["", f"{'prompt':11}{_one_line(question)}"]
        lines += [
            f"{label:11}{_one_line(row[key])}"
            for label, key in (("reference", "completion"), ("base", "base"), ("adapter", "adapter"))
        ]
    seconds = {
        name: facts["stage_seconds"] for name, facts in read_notes(paths.local).items() if "stage_seconds" in facts
    }
    if seconds:
        lines += ["", "seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())]
    lines += [
        "",
        f"The data         {paths.analysis / 'index.html'}",
        f"The training     {paths.training / 'index.html'}",
        f"The result       {paths.evaluation / 'index.html'}",
        f"The experiments  {make_command('mlflow-ui', paths.folder)}",
        f"The model        models:/{model_name}@champion",
        "Talk to it       recipe chat",
    ]  # fmt: skip
    return "\n".join(lines)


def _one_line(text: str, width: int = 100) -> str:
    """Return the text on one line, shortened to `width` characters."""
    return shorten(" ".join(text.split()), width)
