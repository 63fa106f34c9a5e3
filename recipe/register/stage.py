"""Stage register: the adapter becomes a version of a model in the MLflow registry.

Reads the adapter, its metrics and reports. Makes models/registered.json, a receipt that is the same whatever server
took the version. The same adapter is registered once; on another server, `recipe register` registers it there.

    python -m recipe register
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from recipe.core.io import read_json, read_json_lines, sha256_tree, write_json
from recipe.core.paths import Paths
from recipe.core.services import Services
from recipe.register.params import RegistryParams
from recipe.report.comparison import Groups, headline
from recipe.report.loss_curve import read_curve
from recipe.text.templates import question_in

ALIAS = "champion"


@dataclass(frozen=True)
class Adapter:
    """All that a version is made of. `tags` are the numbers and lineage that the registry shows."""

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
    """What this stage asks of the tracker."""

    def add_version(self, adapter: Adapter) -> str:
        """Register the adapter, or find the version it already is; its number."""

    def champion(self, name: str) -> tuple[str, dict[str, str]] | None:
        """The version under the alias and its tags."""

    def record_promotion(self, name: str, version: str, sentence: str, *, moves: bool) -> None:
        """Show beside the version how it compared with the champion, and move the alias to it where it `moves`."""


def decide(
    rule: str, version: str, tags: dict[str, str], champion: tuple[str, dict[str, str]] | None
) -> tuple[bool, str]:
    """Whether the alias moves to `version`, and why, in a sentence."""
    if rule == "never":
        return False, f"version {version} is registered; the alias {ALIAS} stays, as registry.promote says"
    if champion is None:
        return True, f"version {version} is the first {ALIAS}"
    number, held = champion
    if number == version:
        return False, f"version {version} is the {ALIAS} already"
    if rule == "always":
        return True, f"version {version} is the {ALIAS} now, as registry.promote says; it was version {number}"
    for tag, what in (("validation_sha256", "validation rows, tokens or mask"), ("tokenizer_sha256", "tokenizer")):
        if tags[tag] != held.get(tag):
            return False, (
                f"version {number} stays the {ALIAS}: version {version} was measured on another {what}, so their "
                "losses can't be compared. Set registry.promote to always to move the alias"
            )
    new, old = float(tags["validation_loss"]), float(held["validation_loss"])
    if new < old:
        return (
            True,
            f"version {version} is the {ALIAS} now: validation loss {new:.4f} against {old:.4f} of version {number}",
        )
    return (
        False,
        f"version {number} stays the {ALIAS}: validation loss {old:.4f} against {new:.4f} of version {version}",
    )


def plain(name: str) -> str:
    """A name with only what MLflow takes in the names of metrics and tags."""
    return re.sub(r"[^\w. -]", "_", name, flags=re.ASCII).strip(".") or "_"


def flat(prefix: str, values: dict[str, Any]) -> dict[str, float]:
    """Numbers of a nested mapping under `/`-joined names."""
    made: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            made |= flat(f"{prefix}/{plain(name)}", value)
        elif isinstance(value, int | float):
            made[f"{prefix}/{plain(name)}"] = float(value)
    return made


def run_metrics(scores: dict[str, Any], groups: Groups, train_metrics: dict[str, Any]) -> dict[str, float]:
    """The numbers of a run, in groups that the UI shows apart. By category and length, those of the adapter alone."""
    whole = {name: value for name, value in scores.items() if isinstance(value, dict)}
    by = {name: {one: values["adapter"] for one, values in some.items()} for name, some in groups.items()}
    return flat("eval", whole | by) | flat("train", train_metrics)


def answer_row(one: dict[str, Any]) -> dict[str, Any]:
    """An answered prompt as a row of the run's table."""
    return {
        "asked": question_in(one["prompt"]), "wanted": one["completion"],
        "base": one["base"], "adapter": one["adapter"],
        "base is right": one["base_matches"], "adapter is right": one["adapter_matches"], "category": one["category"],
    }  # fmt: skip


def model_card(
    manifest: dict[str, Any],
    meta: dict[str, Any],
    train_metrics: dict[str, Any],
    scores: dict[str, Any],
    tags: dict[str, str],
) -> str:
    """The card that stands beside the registered adapter, in Markdown."""
    base, adapter = scores["base"], scores["adapter"]
    lines = [
        f"# A LoRA adapter of {manifest['id']}", "", headline(scores), "",
        f"- Base: {manifest['id']}, revision {manifest['revision']}, sha256 of its files {manifest['sha256']}",
        f"- Licences: base {manifest['license'] or 'not stated'}, data {meta['license'] or 'not stated'}",
        *[f"- Data: {file['name']}, sha256 {file['sha256']}" for file in meta["data"]],
        f"- Rows: {meta['rows']['train']:,} trained on, {meta['rows']['validation']:,} validated on",
        f"- Template: {meta['template']}, loss on {meta['loss_on']}, at most {meta['max_length']:,} tokens",
        f"- Training: {train_metrics['steps']:,} steps, {train_metrics['tokens']:,} tokens an epoch",
        "", "| | base | adapter |", "|---|---|---|",
        *[f"| {name.replace('_', ' ')} | {base[name]} | {adapter[name]} |" for name in base],
        "", "## Where it comes from", "", *[f"- {name}: {value}" for name, value in sorted(tags.items())], "",
    ]  # fmt: skip
    return "\n".join(lines)


def register(params: RegistryParams, paths: Paths, lineage: dict[str, str], registry: Registry) -> str:
    """Register the adapter, move the alias where it should, write the receipt; what was done, in a sentence."""
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
            generations=[answer_row(one) for one in read_json_lines(paths.evaluation / "generations.jsonl")],
            template=meta["template"],
            metrics=run_metrics(scores, read_json(paths.evaluation / "groups.json"), train_metrics),
            curve=read_curve(paths.loss_curve),
            tags=tags,
            card=model_card(manifest, meta, train_metrics, scores, tags),
        )
    )
    champion = registry.champion(params.name)
    moves, sentence = decide(params.promote, version, tags, champion)
    if champion is None or champion[0] != version:  # how it became champion stays
        registry.record_promotion(params.name, version, sentence, moves=moves)
    write_json(
        paths.receipt,
        {"name": params.name, "adapter_sha256": sha256, "base_sha256": manifest["sha256"],
         "validation_loss": scores["adapter"]["loss"], "validation_sha256": meta["validation_sha256"]},
    )  # fmt: skip
    return sentence


def run(params: dict[str, Any], paths: Paths, services: Services) -> str:
    """`register`: which version it is, and whether it is the champion, in a sentence."""
    registry = services.registry()
    lineage = {**registry.facts["tags"], "fingerprint": registry.facts["fingerprint"]}
    said = register(params["registry"], paths, lineage, registry)
    services.remember(registry.run)
    return said
