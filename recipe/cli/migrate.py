"""Implements `recipe migrate`, which creates a recipe from another tool's configuration file."""

import json
import re
from pathlib import Path
from typing import Any

from recipe.cli.new import new_recipe, source_of
from recipe.core.config import load_yaml
from recipe.core.errors import ParamsError
from recipe.core.hub_cache import HUB
from recipe.migrate import axolotl, llama_factory, trl
from recipe.migrate.migration import Migration

TOOLS = (
    "axolotl (base_model), LLaMA-Factory (model_name_or_path with finetuning_type, lora_rank, cutoff_len and so on), "
    "and `trl sft` (model_name_or_path with dataset_name, datasets or use_peft)"
)
FORMATS = (".yaml", ".yml", ".json", "")
ROW_FILES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt", ".zip", ".gz", ".arrow")
LEVELS = 3  # paths are also looked up in this many folders above the file's folder


def migrate(folder: Path, file: Path, name: str | None, data: str | None) -> tuple[Path, list[str]]:
    """Create presets/NAME from another tool's file, and return the new folder and the lines of a report.

    `folder` is the current recipe. Settings that have no counterpart in the file are copied from this recipe. If `data`
    is not None, it replaces the file's data source. Raises ParamsError if the file is not a known tool's configuration,
    if it does not configure supervised fine-tuning, or if its data source or model does not exist.
    """
    if file.suffix.lower() not in FORMATS:
        raise ParamsError(
            f"{file} is not a YAML file. Only YAML files are read, because code can't be converted. Known formats: "
            f"{TOOLS}."
        )
    migration = _convert(file, _plain(load_yaml(file)), replaced=data is not None)
    chosen = name or re.sub(r"[^\w-]+", "-", file.stem, flags=re.ASCII).strip("-_") or "migrated"
    rows = data or _resolve(file, migration, migration.data)
    model = _resolve(file, migration, migration.model)
    assert rows is not None
    if source_of(rows) != HUB:
        migration.settings.pop("data.revision", None)
    try:
        new, notes = new_recipe(folder, chosen, rows, model, migration.settings)
    except ParamsError as error:
        raise ParamsError(_explain(file, migration, str(error))) from None
    return new, [*migration.report(), *notes, *migration.warnings()]


def _explain(file: Path, migration: Migration, error: str) -> str:
    """Describe mistakes in the new params.yaml by the keys of the user's file, because that is the file to change.

    An error that is not a list of such mistakes is returned unchanged.
    """
    mistakes = re.findall(r"^  (?:line \d+, )?(([\w.]+): .*)$", error, re.MULTILINE)
    if not mistakes or "params.yaml has " not in error.splitlines()[0]:
        return error
    lines = []
    for text, key in mistakes:
        origin = next((entry for entry in migration.taken if f" -> {key}: " in entry), None)
        lines.append(f"  {origin.split(' -> ')[0]} becomes {text}" if origin else f"  {text}")
    return "\n".join([f"{file} has values that can't be used:", *lines])


def _convert(file: Path, config: dict[str, Any], *, replaced: bool) -> Migration:
    def find(path: str) -> Path | None:
        return _find(file, path)

    if axolotl.recognizes(config):
        return axolotl.convert(config, replaced=replaced)
    if llama_factory.recognizes(config):
        return llama_factory.convert(config, find, replaced=replaced)
    if trl.recognizes(config):
        return trl.convert(config, find, replaced=replaced)
    found = ", ".join(list(config)[:8]) or "none"
    raise ParamsError(f"{file} is not recognized. Its first keys are {found}. Known formats: {TOOLS}.")


def _plain(value: Any) -> Any:
    """Convert a YAML document to plain Python values, with strings as dictionary keys."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return json.loads(json.dumps(value, default=str))


def _find(file: Path, path: str) -> Path | None:
    """Look up a path in the working directory, the file's folder, and the LEVELS folders above that folder.

    Return the first match that exists, or None if there is no match.
    """
    places = (Path.cwd(), *list(file.resolve().parents)[: LEVELS + 1])
    return next((place / path for place in places if path and (place / path).exists()), None)


def _resolve(file: Path, migration: Migration, source: str | None) -> str | None:
    """Return a source as an existing path or as a Hub name. Raises ParamsError if the source is neither."""
    if source is None:
        return None
    if found := _find(file, source):
        return str(found)
    if source.lower().endswith(ROW_FILES) or source.startswith((".", "/", "~")):
        raise ParamsError(
            f"{source} does not exist. Paths are looked up in the current folder, in the folder of {file.name} and in "
            f"{LEVELS} folders above it. Name the rows with --data."
        )
    migration.taken.append(f"{source} does not exist as a path, so it is taken as a name on the Hub")
    return source
