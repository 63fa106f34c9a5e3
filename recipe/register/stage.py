"""Stage register: register the adapter as a model version in the MLflow registry.

Reads the adapter, its metrics and reports. Writes models/registered.json, a receipt that does not depend on the server.
On each server, an adapter is registered only once; `recipe register` with another server registers it there.

    python -m recipe register
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from recipe.core.errors import DataError, MachineError
from recipe.core.io import read_json, read_json_lines, sha256_tree, write_json
from recipe.core.paths import Paths
from recipe.core.services import Services
from recipe.register.params import RegistryParams
from recipe.report.comparison import Groups, headline
from recipe.report.loss_curve import read_curve
from recipe.text.templates import question_in

ALIAS = "champion"
GENERATION_COLUMNS = ("prompt", "completion", "base", "adapter", "base_matches", "adapter_matches", "category")


@dataclass(frozen=True)
class Adapter:
    """Everything that goes into a version. `tags` are the numbers and the lineage that the registry shows."""

    name: str
    folder: Path
    tokenizer: Path
    base_manifest: Path
    prepared_meta: Path
    training: Path
    report: Path
    analysis: Path
    template: str
    headline: str
    generations: list[dict[str, Any]]
    metrics: dict[str, float]
    curve: list[dict[str, float]]
    tags: dict[str, str]
    card: str


class Registry(Protocol):
    """What this stage needs from the tracker."""

    def add_version(self, adapter: Adapter) -> str:
        """Register the adapter unless it is registered already; returns its version number."""

    def champion(self, name: str) -> tuple[str, dict[str, str]] | None:
        """The version that has the alias, and its tags; None if no version has it."""

    def record_promotion(self, name: str, version: str, sentence: str, *, moves: bool) -> None:
        """Tag the version with its comparison with the champion, and move the alias to it if `moves`."""


def decide(
    rule: str, version: str, tags: dict[str, str], champion: tuple[str, dict[str, str]] | None
) -> tuple[bool, str]:
    """Whether the alias moves to `version`, and a sentence that says why."""
    if rule == "never":
        return False, f"version {version} is registered; the alias {ALIAS} stays, because registry.promote is never"
    if champion is None:
        return True, f"version {version} is the first {ALIAS}"
    number, champion_tags = champion
    if number == version:
        return False, f"version {version} is already the {ALIAS}"
    if rule == "always":
        return (
            True,
            f"version {version} is now the {ALIAS}, replacing version {number}, because registry.promote is always",
        )
    for tag, difference in (
        ("validation_sha256", "validation rows, tokens or mask"),
        ("tokenizer_sha256", "tokenizer"),
    ):
        if tags[tag] != champion_tags.get(tag):
            return False, (
                f"version {number} stays the {ALIAS}: version {version} was evaluated with different {difference}, so "
                "their losses can't be compared. Set registry.promote to always to move the alias"
            )
    new, old = float(tags["validation_loss"]), float(champion_tags["validation_loss"])
    if new < old:
        return (
            True,
            f"version {version} is now the {ALIAS}: validation loss {new:.4f} against {old:.4f} of version {number}",
        )
    return (
        False,
        f"version {number} stays the {ALIAS}: validation loss {old:.4f} against {new:.4f} of version {version}",
    )


def plain(name: str) -> str:
    """The name, with characters that MLflow rejects in metric and tag names replaced by `_`."""
    return re.sub(r"[^\w. -]", "_", name, flags=re.ASCII).strip(".") or "_"


def flat(prefix: str, values: dict[str, Any]) -> dict[str, float]:
    """The numbers of a nested mapping, keyed by `/`-joined names."""
    numbers: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            numbers |= flat(f"{prefix}/{plain(name)}", value)
        elif isinstance(value, int | float):
            numbers[f"{prefix}/{plain(name)}"] = float(value)
    return numbers


def run_metrics(scores: dict[str, Any], groups: Groups, train_metrics: dict[str, Any]) -> dict[str, float]:
    """The metrics of a run, grouped as the UI shows them. By category and length, only those of the adapter."""
    overall = {name: value for name, value in scores.items() if isinstance(value, dict)}
    by_group = {
        name: {group: values["adapter"] for group, values in members.items()} for name, members in groups.items()
    }
    return flat("eval", overall | by_group) | flat("train", train_metrics)


def read_generations(paths: Paths) -> list[dict[str, Any]]:
    """The answered validation rows that evaluate wrote.

    Raises MachineError if the file is missing, and DataError if a column is: another version of the recipe wrote it.
    """
    path = paths.evaluation / "generations.jsonl"
    if not path.is_file():
        raise MachineError(f"{path} is missing; the evaluate stage creates it. Run `dvc repro`.")
    rows = read_json_lines(path)
    missing = [column for column in GENERATION_COLUMNS if any(column not in row for row in rows)]
    if missing:
        raise DataError(
            f"{path} has no column {', '.join(missing)}: another version of the recipe wrote it. Run `dvc repro`."
        )
    return rows


def answer_row(row: dict[str, Any]) -> dict[str, Any]:
    """An answered validation row as a row of the run's table."""
    return {
        "asked": question_in(row["prompt"]), "wanted": row["completion"],
        "base": row["base"], "adapter": row["adapter"],
        "base is right": row["base_matches"], "adapter is right": row["adapter_matches"], "category": row["category"],
    }  # fmt: skip


def model_card(
    manifest: dict[str, Any],
    meta: dict[str, Any],
    train_metrics: dict[str, Any],
    scores: dict[str, Any],
    tags: dict[str, str],
) -> str:
    """The model card of the registered adapter, in Markdown."""
    base, adapter = scores["base"], scores["adapter"]
    lines = [
        f"# A LoRA adapter for {manifest['id']}", "", headline(scores), "",
        f"- Base: {manifest['id']}, revision {manifest['revision']}, sha256 of its files {manifest['sha256']}",
        f"- Licenses: base {manifest['license'] or 'not stated'}, data {meta['license'] or 'not stated'}",
        *[f"- Data: {file['name']}, sha256 {file['sha256']}" for file in meta["data"]],
        f"- Rows: {meta['rows']['train']:,} for training, {meta['rows']['validation']:,} for validation",
        f"- Template: {meta['template']}, loss on {meta['loss_on']}, at most {meta['max_length']:,} tokens",
        f"- Training: {train_metrics['steps']:,} steps, {train_metrics['tokens']:,} tokens per epoch",
        "", "| | base | adapter |", "|---|---|---|",
        *[f"| {name.replace('_', ' ')} | {base[name]} | {adapter[name]} |" for name in base],
        "", "## Lineage", "", *[f"- {name}: {value}" for name, value in sorted(tags.items())], "",
    ]  # fmt: skip
    return "\n".join(lines)


def register(params: RegistryParams, paths: Paths, lineage: dict[str, str], registry: Registry) -> str:
    """Register the adapter, move the alias if needed, and write the receipt. Returns a sentence with the result."""
    manifest, meta = read_json(paths.base / "manifest.json"), read_json(paths.prepared / "meta.json")
    train_metrics, scores = read_json(paths.train_metrics), read_json(paths.evaluate_metrics)
    sha256 = sha256_tree(paths.adapter)
    tags = {
        "adapter_sha256": sha256,
        "base_id": manifest["id"],
        "base_revision": str(manifest["revision"]),
        "base_sha256": manifest["sha256"],
        "tokenizer_sha256": meta["tokenizer_sha256"],
        "validation_sha256": meta["validation_sha256"],
        "validation_loss": f"{scores['adapter']['loss']:.6f}",
        "base_validation_loss": f"{scores['base']['loss']:.6f}",
        **{f"data_sha256.{plain(file['name'])}": file["sha256"] for file in meta["data"]},
        **lineage,
    }
    version = registry.add_version(
        Adapter(
            name=params.name,
            folder=paths.adapter,
            tokenizer=paths.base / "tokenizer",
            base_manifest=paths.base / "manifest.json",
            prepared_meta=paths.prepared / "meta.json",
            training=paths.train_metrics,
            report=paths.evaluation,
            analysis=paths.analysis,
            headline=headline(scores),
            generations=[answer_row(row) for row in read_generations(paths)],
            template=meta["template"],
            metrics=run_metrics(scores, read_json(paths.evaluation / "groups.json"), train_metrics),
            curve=read_curve(paths.loss_curve),
            tags=tags,
            card=model_card(manifest, meta, train_metrics, scores, tags),
        )
    )
    champion = registry.champion(params.name)
    moves, sentence = decide(params.promote, version, tags, champion)
    if champion is None or champion[0] != version:  # keep the sentence that says how it became champion
        registry.record_promotion(params.name, version, sentence, moves=moves)
    write_json(
        paths.receipt,
        {"name": params.name, "adapter_sha256": sha256, "base_sha256": manifest["sha256"],
         "validation_loss": scores["adapter"]["loss"], "validation_sha256": meta["validation_sha256"]},
    )  # fmt: skip
    return sentence


def run(params: dict[str, Any], paths: Paths, services: Services) -> str:
    """`register`: returns a sentence with the version and whether it is the champion."""
    registry = services.registry()
    lineage = {**registry.facts["tags"], "fingerprint": registry.facts["fingerprint"]}
    sentence = register(params["registry"], paths, lineage, registry)
    services.remember(registry.run)
    return sentence
