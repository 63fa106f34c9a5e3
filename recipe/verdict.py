"""The report on the result: whether the adapter is better than its base, by how much, where, and in what words.

report_page(results, generations, pictures(results), about("demo-base", meta, trained))    # metrics/evaluate.json
"""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from recipe.comparison import headline
from recipe.figures import pairs_of_bars
from recipe.pages import Part, figure, page, table
from recipe.prompts import asked

SHOWN_ANSWERS = 30
MAX_GROUPS = 40  # of more, a picture is no help
SIDES = ("base", "adapter")
RIGHT = "✓ "


def pictures(results: dict[str, Any]) -> dict[str, str]:
    """Base beside adapter as SVG: loss by kind (where rows have kinds) and by length, exact match by kind."""
    drawn = {}
    for key, name in (("loss_by_kind",) * 2, ("loss_by_length",) * 2, ("by_kind", "exact_match_by_kind")):
        groups = {group: (one["base"], one["adapter"]) for group, one in results[key].items()}
        if 0 < len(groups) <= MAX_GROUPS:
            shares = key == "by_kind"
            drawn[name] = pairs_of_bars(groups, SIDES, "exactly right" if shares else "loss", shares=shares)
    return drawn


def about(base_id: str, meta: dict[str, Any], trained: dict[str, Any]) -> str:
    """What was trained, in a sentence that follows the headline."""
    own = trained["trainable_parameters"]
    return (
        f"It has {own:,} parameters beside the {trained['parameters'] - own:,} of {base_id}, and was trained on "
        f"{meta['rows']['train']:,} rows in {trained['steps']:,} steps."
    )


def report_page(
    results: dict[str, Any], generations: list[dict[str, Any]], drawn: Mapping[str, str], trained: str
) -> str:
    """The report as HTML; `trained` says what was trained."""
    parts = [*_numbers(results), *_groups(results, drawn), *_tasks(results)]
    shown = [
        [asked(one["prompt"]), one["completion"], *(RIGHT * one[f"{side}_matches"] + one[side] for side in SIDES)]
        for one in generations[:SHOWN_ANSWERS]
    ]
    if shown:
        note = f"{RIGHT.strip()} stands before an answer that is exactly right."
        if len(generations) > SHOWN_ANSWERS:
            note += f" generations.jsonl has all {len(generations):,}."
        parts.append(Part("Base beside adapter", table(["asked", "wanted", *SIDES], shown), note))
    return page("Is the adapter better?", f"{headline(results)} {trained}", parts)


def _numbers(results: dict[str, Any]) -> list[Part]:
    numbers = [[side, *(_short(name, value) for name, value in results[side].items())] for side in SIDES]
    gain = results["difference"]
    gains = [["loss, lower by", f"{gain['loss']:.3f}", f"{gain['loss_low']:.3f} to {gain['loss_high']:.3f}"]]
    if "exact_match" in gain:
        shares = [f"{100 * gain[name]:.1f}" for name in ("exact_match", "exact_match_low", "exact_match_high")]
        gains.append(["exact match, higher by", f"{shares[0]} points", f"{shares[1]} to {shares[2]} points"])
    return [
        Part("On the validation rows", table(["model", "loss", "perplexity", "token accuracy", "exact match"], numbers),
             f"{results['rows']:,} rows; {results['prompts']:,} prompts answered in full, greedily."),
        Part("What the adapter gains", table(["gain", "difference", "95% interval"], gains),
             "Bootstrap: 1,000 draws of as many validation rows, with replacement."),
    ]  # fmt: skip


def _short(name: str, value: float | None) -> str:
    """A score as the headline has it: losses with three digits, perplexity with two, shares as percentages."""
    if value is None:
        return "-"
    return f"{value:.3f}" if name == "loss" else f"{value:,.2f}" if name == "perplexity" else f"{value:.1%}"


def _groups(results: dict[str, Any], drawn: Mapping[str, str]) -> list[Part]:
    parts = []
    for name, groups in (("kind", results["loss_by_kind"]), ("length", results["loss_by_length"])):
        if groups:
            losses = [[group, one["rows"], *(f"{one[side]:.3f}" for side in SIDES)] for group, one in groups.items()]
            body = _drawn(drawn, f"loss_by_{name}", f"Loss of base and adapter by {name}, as in the table below.")
            parts.append(Part(f"Loss by {name}", body + table([name, "rows", *SIDES], losses)))
    if results["by_kind"]:
        rows = [[kind, one["prompts"], *(f"{one[side]:.0%}" for side in SIDES)]
                for kind, one in results["by_kind"].items()]  # fmt: skip
        body = _drawn(drawn, "exact_match_by_kind", "Share of exact matches by kind, as in the table below.")
        parts.append(Part("Exact match by kind", body + table(["kind", "prompts", *SIDES], rows)))
    return parts


def _drawn(drawn: Mapping[str, str], name: str, label: str) -> Markup:
    return figure(drawn[name], label) if name in drawn else Markup("")


def _tasks(results: dict[str, Any]) -> list[Part]:
    rows = [
        [task, metric, *(_with_error(scores[side], metric) for side in SIDES)]
        for task, scores in results.get("tasks", {}).items()
        for metric in scores["base"] if "_stderr" not in metric
    ]  # fmt: skip
    note = "By lm-evaluation-harness; ± is the standard error."
    return [Part("Tasks", table(["task", "metric", *SIDES], rows), note)] if rows else []


def _with_error(scores: dict[str, float], metric: str) -> str:
    name, _, rest = metric.partition(" ")
    error = scores.get(f"{name}_stderr{f' {rest}' if rest else ''}")
    return "-" if metric not in scores else f"{scores[metric]:.4f}" + ("" if error is None else f" ± {error:.4f}")
