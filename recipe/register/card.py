"""Builds the model card of a registered adapter."""

from typing import Any

from recipe.report.comparison import LABELS, headline
from recipe.report.row_scores import GENERAL


def model_card(
    manifest: dict[str, Any],
    meta: dict[str, Any],
    train_metrics: dict[str, Any],
    scores: dict[str, Any],
    tags: dict[str, str],
) -> str:
    """Return the model card in Markdown: the result, base model, data, scores, intended use, rebuild and lineage."""
    base, adapter = scores["base"], scores["adapter"]
    revision = f", revision {manifest['revision']}" if manifest["revision"] else ""
    lines = [
        f"# A LoRA adapter for {manifest['id']}", "", headline(scores), "",
        f"- Base model: {manifest['id']}{revision}, sha256 of its files {manifest['sha256']}",
        f"- Licenses: base model {manifest['license'] or 'not stated'}, data {meta['license'] or 'not stated'}",
        *[f"- Data: {file['name']}, sha256 {file['sha256']}" for file in meta["data"]],
        f"- Rows: {meta['rows']['train']:,} for training, {meta['rows']['validation']:,} for validation",
        f"- Template: {meta['template']}, loss on {meta['loss_on']}, up to {meta['max_length']:,} tokens per sequence",
        f"- Training: {train_metrics['steps']:,} steps, {train_metrics['tokens']:,} tokens per epoch",
        "", "| | base | adapter |", "|---|---|---|",
        *[f"| {LABELS[name]} | {base[name]} | {adapter[name]} |" for name in base],
        *_general_rows(scores), "", "## Intended use", "", *_intended_use(meta, scores),
        "", "## How to rebuild", "", *_rebuild(tags),
        "", "## Lineage", "", *[f"- {name}: {value}" for name, value in sorted(tags.items())], "",
    ]  # fmt: skip
    return "\n".join(lines)


def _general_rows(scores: dict[str, Any]) -> list[str]:
    if GENERAL not in scores:
        return []
    general = scores[GENERAL]
    return [
        "", f"On {general['rows']:,} general rows, which the training did not target:", "", "| | base | adapter |",
        "|---|---|---|",
        *[f"| {LABELS[name]} | {value} | {general['adapter'][name]} |" for name, value in general["base"].items()],
    ]  # fmt: skip


def _intended_use(meta: dict[str, Any], scores: dict[str, Any]) -> list[str]:
    others = " and on general rows" if GENERAL in scores else ""
    return [
        f"The adapter answers prompts like those of its training rows, written with the template {meta['template']}. "
        f"It was evaluated only on {scores['rows']:,} validation rows of the same data{others}, and not for other "
        "tasks, other languages, or safety. The licenses of the base model and the data apply.",
    ]


def _rebuild(tags: dict[str, str]) -> list[str]:
    if "git_commit" not in tags:
        return ["The adapter was registered outside a git repository, so no commit to rebuild is known."]
    return [
        "In a clone of the repository, with the environment from `make env`:", "", "```console",
        f"$ cd {tags.get('recipe_folder', '.')}", f"$ recipe verify --commit {tags['git_commit']}", "```",
    ]  # fmt: skip
