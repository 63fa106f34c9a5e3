"""Describes a trained adapter with all that its exports need: base model, tokenizer, template and validation rows."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from recipe.core.adapter import WEIGHTS
from recipe.core.errors import MachineError
from recipe.core.io import read_json, read_json_lines, sha256_file
from recipe.core.paths import Paths
from recipe.model.load import find_base
from recipe.model.processor import Quantization


@dataclass(frozen=True)
class Trained:
    """A trained adapter. `rows` are validation rows, each with the text of a prompt and of a completion.

    A local path in `manifest` is relative to `folder`.
    """

    folder: Path
    manifest: dict[str, Any]
    meta: dict[str, Any]
    metrics: dict[str, Any]  # metrics/train.json
    adapter: Path
    tokenizer: Path
    rows: list[dict[str, Any]]

    @property
    def quantization(self) -> Quantization:
        """How the base model was quantized during training."""
        quantization: Quantization = self.metrics["quantization"]
        return quantization

    @cached_property
    def adapter_sha256(self) -> str:
        """The sha256 of the adapter's weights, when it was first asked for."""
        return sha256_file(self.adapter / WEIGHTS)

    def base_files(self) -> list[Path]:
        """Return the base model's files, after checking them against the manifest."""
        source = find_base(self.manifest, self.folder)
        return [source / file["name"] for file in self.manifest["files"]]


def trained_here(paths: Paths) -> Trained:
    """Return the adapter in a recipe folder. Raises MachineError if no adapter was trained there."""
    if not (paths.adapter / WEIGHTS).is_file():
        raise MachineError(f"{paths.adapter} contains no adapter. Run `dvc repro` to train one.")
    return Trained(
        folder=paths.folder,
        manifest=read_json(paths.base / "manifest.json"),
        meta=read_json(paths.prepared / "meta.json"),
        metrics=read_json(paths.train_metrics),
        adapter=paths.adapter,
        tokenizer=paths.base / "tokenizer",
        rows=read_json_lines(paths.prepared / "validation.jsonl"),
    )
