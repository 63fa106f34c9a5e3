"""Create a recipe folder: its params.yaml, and a copy of the root's dvc.yaml whose `root` points to the code."""

import os
import re
from pathlib import Path
from typing import Any

from recipe.core.config import dump_yaml, load_yaml
from recipe.core.errors import DataError, ParamsError
from recipe.core.hub_cache import HUB
from recipe.core.io import new_folder, write_text
from recipe.core.paths import repository

HUB_FILE = (
    "`source: hub` in params.yaml: DVC wants a file behind every dependency, and finds this one. It never changes; "
    "what comes from the Hub is pinned by `revision`.\n"
)


def source_of(source: str) -> str:
    """The value of `source` in params.yaml: an existing path unchanged, or `hub` for a Hub name."""
    if Path(source).exists():
        return source
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
        return HUB
    raise ParamsError(f"{source} does not exist and is not a Hub name (owner/name).")


def new_recipe(folder: Path, name: str, data: str | None, model: str | None) -> Path:
    """Create presets/NAME in the repository from the recipe in `folder`; relative paths still point to the same files.

    `data` and `model` replace the sources; each is a path or a Hub name. Raises ParamsError if the name is taken or
    invalid, if a source is neither a path nor a Hub name, or if the model's path is not a folder with config.json.
    """
    root = repository(folder)
    new = root / "presets" / name
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name):
        raise ParamsError(f"{name!r} is not a valid recipe name: use letters, digits, '_' and '-'.")
    if new.exists():
        raise ParamsError(f"{new} already exists. Choose another name.")
    if model is not None and source_of(model) != HUB and not (Path(model) / "config.json").is_file():
        raise ParamsError(
            f"{model} is not a base model: it has no config.json. Choose a folder in transformers' layout."
        )
    params = load_yaml(folder / "params.yaml")
    missing = [section for section in ("data", "model", "registry") if section not in params]
    if missing:
        raise ParamsError(f"{folder / 'params.yaml'} has no section {', '.join(missing)}.")
    for section, option in (("data", data), ("model", model)):
        if option is not None:
            source = source_of(option)
            params[section]["source"] = source if source == HUB else os.path.relpath(option, new)
        elif params[section]["source"] != HUB:
            params[section]["source"] = os.path.relpath(folder / params[section]["source"], new)
    if data is not None and source_of(data) == HUB:
        params["data"].update(
            id=data, revision=None, subset=None, sha256=None, train_split="train", validation_split=None
        )
    elif data is not None:
        _describe(params, Path(data))
    if model is not None:
        on_hub = source_of(model) == HUB
        params["model"].update(id=model if on_hub else Path(model).resolve().name, revision=None)
    params["registry"].update(name=name, experiment=name)
    params.yaml_set_start_comment(
        f"Recipe {name}. Run it with `dvc repro` in this folder; check this file with `recipe params`."
    )
    with new_folder(new) as target:
        write_text(target / "params.yaml", dump_yaml(params))
        write_text(target / "dvc.yaml", pipeline_of(root))
        write_hub_file(target, params)
    return new


def pipeline_of(root: Path) -> str:
    """The dvc.yaml of a folder in presets/: the root's dvc.yaml with a different `root`."""
    text = (root / "dvc.yaml").read_text(encoding="utf-8")
    assert text.count("\n  - root: .\n") == 1
    return text.replace("\n  - root: .\n", "\n  - root: ../..\n")


def write_hub_file(folder: Path, params: Any) -> None:
    """Write the file `hub`, DVC's dependency for `source: hub`, if a source is `hub`. Its content never changes."""
    if HUB in (params["data"]["source"], params["model"]["source"]) and not (folder / HUB).exists():
        write_text(folder / HUB, HUB_FILE)


def _describe(params: Any, data: Path) -> None:
    """Adapt the data section to the source: a folder has splits, a file does not."""
    params["data"].update(id=None, revision=None, subset=None, sha256=None)
    if not data.is_dir():
        params["data"].update(train_split="train", validation_split=None)
        return
    splits = sorted({re.split(r"[-.]", file.name)[0] for file in data.iterdir() if file.is_file()})
    if "train" not in splits:
        raise DataError(
            f"{data} has no train split: found {', '.join(splits) or 'no files'}. "
            "Name the file with the training rows train.jsonl."
        )
    validation = next((name for name in ("validation", "valid", "dev", "test") if name in splits), None)
    params["data"].update(train_split="train", validation_split=validation)
