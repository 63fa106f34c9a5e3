"""Says what came out of a run and where to look: what `recipe summary` prints, and the end of `make demo`."""

from typing import Any

from recipe.cli.run_metadata import read_notes
from recipe.core.io import read_json, read_json_lines
from recipe.core.paths import Paths
from recipe.report.comparison import headline
from recipe.text.templates import question_in

SHOWN = 3


def pick(generations: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Some generations, spread over the file; where they have categories, the last one of different categories."""
    chosen = list({one["category"] or index: one for index, one in enumerate(generations)}.values())
    return [chosen[index * len(chosen) // count] for index in range(min(count, len(chosen)))]


def summary_text(paths: Paths, model_name: str) -> str:
    """The headline, numbers, three answers variant by side, and the next commands."""
    results = read_json(paths.evaluate_metrics)
    lines = [headline(results), ""]
    lines.append(f"{'':9}{'loss':>9}{'perplexity':>12}{'token acc.':>12}{'exact':>9}")
    for variant in ("base", "adapter"):
        one = results[variant]
        exact = "-" if one["exact_match"] is None else f"{one['exact_match']:.1%}"
        lines.append(f"{variant:9}{one['loss']:9.3f}{one['perplexity']:12,.2f}{one['token_accuracy']:12.1%}{exact:>9}")
    for one in pick(read_json_lines(paths.evaluation / "generations.jsonl"), SHOWN):
        question = " | ".join(question_in(one["prompt"]).split("\n\n"))
        lines += ["", f"asked    {_short(question)}"]
        lines += [
            f"{label:9}{_short(one[key])}"
            for label, key in (("wanted", "completion"), ("base", "base"), ("adapter", "adapter"))
        ]
    seconds = {
        name: facts["stage_seconds"] for name, facts in read_notes(paths.local).items() if "stage_seconds" in facts
    }
    if seconds:
        lines += ["", "seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())]
    lines += [
        "",
        f"The data         {paths.analysis / 'index.html'}",
        f"The result       {paths.evaluation / 'index.html'}",
        "The experiments  make mlflow-ui",
        f"The model        models:/{model_name}@champion",
        "Talk to it       recipe chat",
    ]  # fmt: skip
    return "\n".join(lines)


def _short(text: str, width: int = 100) -> str:
    """One line of at most `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
