"""Builds the model card of a registered adapter."""

from typing import Any

from recipe.report.comparison import headline


def model_card(
    manifest: dict[str, Any],
    meta: dict[str, Any],
    train_metrics: dict[str, Any],
    scores: dict[str, Any],
    tags: dict[str, str],
) -> str:
    """Return the model card in Markdown, with the result, base model, data, training, scores and lineage."""
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
        *[f"| {name.replace('_', ' ')} | {base[name]} | {adapter[name]} |" for name in base],
        "", "## Lineage", "", *[f"- {name}: {value}" for name, value in sorted(tags.items())], "",
    ]  # fmt: skip
    return "\n".join(lines)
