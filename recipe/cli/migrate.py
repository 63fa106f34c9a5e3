"""Implements `recipe migrate`, which creates a recipe from the configuration file of another tool."""

import json
import re
from pathlib import Path
from typing import Any

from recipe.cli.context import sections
from recipe.cli.new import new_recipe, source_of
from recipe.core.config import load_yaml, read_params
from recipe.core.errors import ParamsError
from recipe.core.hub_cache import HUB
from recipe.migrate import axolotl, llama_factory, trl
from recipe.migrate.migration import Migration

TOOLS = (
    "axolotl (base_model), LLaMA-Factory (model_name_or_path with finetuning_type, lora_rank, cutoff_len and so on), "
)
TOOLS += "and `trl sft` (model_name_or_path with dataset_name, datasets or use_peft)"


def migrate(folder: Path, file: Path, name: str | None, data: str | None) -> tuple[Path, list[str]]:
    """Create presets/NAME from another tool's file, and return the new folder and the lines of a report.

    `folder` is the current recipe, from which settings without a counterpart in the file are copied. `data` replaces
    the rows that the file names. Raises ParamsError if the file is not a configuration of a known tool, if it does not
    configure supervised fine-tuning, or if its rows or its model do not exist.
    """
    config = _plain(load_yaml(file))
    migration = _convert(file, config)
    chosen = name or re.sub(r"[^\w-]+", "-", file.stem, flags=re.ASCII).strip("-_") or "migrated"
    rows = data or _resolve(file, migration.data)
    model = _resolve(file, migration.model)
    if rows is None:
        raise ParamsError("\n".join([f"{file} does not name rows that can be found.", *migration.missing]))
    if data is not None:
        migration.missing = [line for line in migration.missing if not line.endswith("Name the rows with --data")]
        for key in ("data.subset", "data.revision", "data.train_split", "data.validation_split"):
            migration.settings.pop(key, None)
    elif source_of(rows) != HUB:
        migration.settings.pop("data.revision", None)
    new, notes = new_recipe(folder, chosen, rows, model, migration.settings)
    read_params(new / "params.yaml", sections())
    return new, [*migration.report(), *notes]


def _convert(file: Path, config: dict[str, Any]) -> Migration:
    if axolotl.recognizes(config):
        return axolotl.convert(config)
    if llama_factory.recognizes(config):
        return llama_factory.convert(config, lambda path: _find(file, path))
    if trl.recognizes(config):
        return trl.convert(config)
    found = ", ".join(list(config)[:8]) or "none"
    raise ParamsError(f"{file} is not recognized. Its first keys are {found}. Known formats: {TOOLS}.")


def _plain(value: Any) -> dict[str, Any]:
    """Convert a YAML document to plain values."""
    return dict(json.loads(json.dumps({str(key): item for key, item in value.items()}, default=str)))


def _find(file: Path, path: str) -> Path | None:
    """Return where a path in the file exists: from the working directory, the file's folder or a folder above it."""
    places = (Path.cwd(), *file.resolve().parents)
    return next((place / path for place in places if (place / path).exists()), None)


def _resolve(file: Path, source: str | None) -> str | None:
    """Return a source as an existing path, or unchanged if it does not exist as a path."""
    if source is None:
        return None
    found = _find(file, source)
    return str(found) if found else source
