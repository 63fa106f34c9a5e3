"""The register stage registers the adapter as a model version in the MLflow registry.

The stage reads the adapter, the metrics and the reports. It writes models/registered.json, a receipt that does not
depend on the server. An adapter is registered only once per server. To register the adapter on a second server, set
MLFLOW_TRACKING_URI to the URL of that server, and run `recipe register` again.

    recipe register
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from recipe.core.adapter import check_adapter, is_trained
from recipe.core.errors import DataError
from recipe.core.io import check_count, check_sha256, read_json, read_json_lines, sha256_bytes, sha256_tree, write_json
from recipe.core.paths import Paths
from recipe.core.services import Services
from recipe.register.card import model_card
from recipe.register.params import RegistryParams
from recipe.register.promotion import Candidate, decide
from recipe.report.comparison import Groups, headline
from recipe.report.loss_curve import read_curve
from recipe.report.row_scores import FILE, GENERAL, read_row_scores
from recipe.text.alpaca import question_in

MAX_NAME_CHARS = 100  # MLflow allows 250 characters for a whole key, which may contain several names


@dataclass(frozen=True)
class Adapter:
    """All data stored with a model version. `tags` contains the scores, hashes and lineage for the registry."""

    name: str
    folder: Path
    tokenizer: Path
    base_manifest: Path
    prepared_meta: Path
    training: Path
    report: Path
    analysis: Path
    ledger: Path
    template: str
    headline: str
    generations: list[dict[str, Any]]
    metrics: dict[str, float]
    curve: list[dict[str, float]]
    tags: dict[str, str]
    card: str


class Registry(Protocol):
    """The methods of the model registry that this stage calls."""

    def add_version(self, adapter: Adapter) -> str:
        """Register the adapter unless it is already registered, and return its version number."""

    def champion(self, name: str) -> Candidate | None:
        """Return the version with the `champion` alias, or None if no version has it."""

    def record_promotion(self, name: str, version: str, sentence: str, *, moves: bool) -> None:
        """Store `sentence` with the version, and move the alias to this version if `moves` is true."""


def plain(names: Iterable[str]) -> dict[str, str]:
    """Convert names to ones that MLflow accepts for metrics and tags. Different names stay different.

    Letters of all scripts, digits, `_`, `.`, `-` and spaces are kept. Other characters become `_`, leading and trailing
    periods are removed, and long names are shortened. If two names become equal or a name is shortened, part of the
    sha256 of the original name is appended.
    """
    cleaned = {name: re.sub(r"[^\w. -]", "_", name).strip(".") or "_" for name in names}
    count = Counter(name.casefold() for name in cleaned.values())
    return {
        name: f"{clean[:MAX_NAME_CHARS]}-{sha256_bytes(name.encode())[:8]}"
        if count[clean.casefold()] > 1 or len(clean) > MAX_NAME_CHARS else clean
        for name, clean in cleaned.items()
    }  # fmt: skip


def flat(prefix: str, values: dict[str, Any]) -> dict[str, float]:
    """Return the numbers in a nested mapping as a flat mapping with keys such as `prefix/outer/inner`."""
    numbers: dict[str, float] = {}
    for name, clean in plain(values).items():
        value = values[name]
        if isinstance(value, dict):
            numbers |= flat(f"{prefix}/{clean}", value)
        elif isinstance(value, int | float):
            numbers[f"{prefix}/{clean}"] = float(value)
    return numbers


def run_metrics(scores: dict[str, Any], groups: Groups, train_metrics: dict[str, Any]) -> dict[str, float]:
    """Return the metrics of the MLflow run. MLflow groups metrics by the prefixes of their names.

    For each category and length group, only the adapter's score is included.
    """
    overall = {name: value for name, value in scores.items() if isinstance(value, dict)}
    by_group = {
        name: {group: values["adapter"] for group, values in members.items()} for name, members in groups.items()
    }
    return flat("eval", overall | by_group) | flat("train", train_metrics)


def answer_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a validation row and its answers as a row of the table in the MLflow run."""
    return {
        "asked": question_in(row["prompt"]), "wanted": row["completion"],
        "base": row["base"], "adapter": row["adapter"],
        "base is right": row["base_matches"], "adapter is right": row["adapter_matches"], "category": row["category"],
    }  # fmt: skip


def register(params: RegistryParams, paths: Paths, lineage: dict[str, str], registry: Registry) -> str:
    """Register the adapter, move the alias if needed, write the receipt, and return a sentence with the result."""
    manifest, meta = read_json(paths.base / "manifest.json"), read_json(paths.prepared / "meta.json")
    train_metrics, scores = read_json(paths.train_metrics), read_json(paths.evaluate_metrics)
    generations, curve = read_json_lines(paths.evaluation / "generations.jsonl"), read_curve(paths.loss_curve)
    rows = read_row_scores(paths.evaluation / FILE)
    check_adapter(paths.adapter, manifest)
    if not is_trained(paths.adapter):
        raise DataError(
            f"the adapter in {paths.adapter} was not trained: it equals its initial state. Run `dvc repro`."
        )
    check_sha256(paths.base / "tokenizer", meta["tokenizer_sha256"])
    check_count(paths.evaluation / "generations.jsonl", len(generations), scores["prompts"])
    check_count(paths.evaluation / FILE, len(rows.get("validation", [])), scores["rows"])
    general = scores.get(GENERAL)
    check_count(paths.evaluation / FILE, len(rows.get(GENERAL, [])), general["rows"] if general else 0, "general rows")
    check_count(paths.loss_curve, int(curve[-1]["step"]) if curve else 0, train_metrics["steps"], "steps")
    sha256, names = sha256_tree(paths.adapter), plain(file["name"] for file in meta["data"])
    tags = {
        "adapter_sha256": sha256,
        "base_id": manifest["id"],
        "base_revision": str(manifest["revision"]),
        "base_sha256": manifest["sha256"],
        "tokenizer_sha256": meta["tokenizer_sha256"],
        "validation_sha256": meta["validation_sha256"],
        "validation_loss": f"{scores['adapter']['loss']:.6f}",
        "base_validation_loss": f"{scores['base']['loss']:.6f}",
        **(
            {}
            if general is None
            else {
                "general_sha256": meta["general"]["sha256"],
                "general_loss": f"{general['adapter']['loss']:.6f}",
                "base_general_loss": f"{general['base']['loss']:.6f}",
            }
        ),
        **{f"data_sha256.{names[file['name']]}": file["sha256"] for file in meta["data"]},
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
            ledger=paths.training,
            headline=headline(scores),
            generations=[answer_row(row) for row in generations],
            template=meta["template"],
            metrics=run_metrics(scores, read_json(paths.evaluation / "groups.json"), train_metrics),
            curve=curve,
            tags=tags,
            card=model_card(manifest, meta, train_metrics, scores, tags),
        )
    )
    champion = registry.champion(params.name)
    moves, sentence = decide(params.promote, params.general_margin, Candidate(version, tags, rows), champion)
    # If the version is already the champion, keep the sentence that says why it became the champion.
    if champion is None or champion.number != version:
        registry.record_promotion(params.name, version, sentence, moves=moves)
    write_json(
        paths.receipt,
        {"name": params.name, "adapter_sha256": sha256, "base_sha256": manifest["sha256"],
         "validation_loss": scores["adapter"]["loss"], "validation_sha256": meta["validation_sha256"]},
    )  # fmt: skip
    return sentence


def run(params: dict[str, Any], paths: Paths, services: Services) -> str:
    """Run the register stage, and return a sentence that says whether the registered version is the champion."""
    registry = services.registry()
    lineage = {**registry.facts["tags"], "fingerprint": registry.facts["fingerprint"]}
    sentence = register(params["registry"], paths, lineage, registry)
    services.remember(registry.run)
    return sentence
