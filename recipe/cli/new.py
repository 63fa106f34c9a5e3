"""Creates a recipe folder: its params.yaml, and the root's dvc.yaml with the path to the code in `root`."""

import os
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from recipe.core.config import load_yaml
from recipe.core.errors import DataError, ParamsError
from recipe.core.io import new_folder, write_text
from recipe.core.paths import repository

HUB = "hub"
HUB_FILE = (
    "`source: hub` in params.yaml: DVC wants a file behind every dependency, and finds this one. It never changes; "
    "what comes from the Hub is pinned by `revision`.\n"
)


def source_of(given: str) -> str:
    """What params.yaml calls a source: the path that is there, or `hub` for a name on the Hub."""
    if Path(given).exists():
        return given
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", given):
        return "hub"
    raise ParamsError(f"{given} is not there, and is no name on the Hub (owner/name) either.")


def new_recipe(folder: Path, name: str, data: str | None, model: str | None) -> Path:
    """Make presets/NAME in the repository from the recipe in `folder`; paths in its params lead to the same files.

    `data` and `model` replace the sources: each a path, or a name on the Hub. Raises ParamsError for a name that is
    taken or no folder name, and for a source that is neither.
    """
    root = repository(folder)
    made = root / "presets" / name
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name):
        raise ParamsError(f"{name!r} is no name for a recipe: use letters, digits, '_' and '-'.")
    if made.exists():
        raise ParamsError(f"{made} is there already. Choose another name.")
    params = load_yaml(folder / "params.yaml")
    lacking = [section for section in ("data", "model", "registry") if section not in params]
    if lacking:
        raise ParamsError(f"{folder / 'params.yaml'} has no section {', '.join(lacking)}.")
    for section, given in (("data", data), ("model", model)):
        if given is not None:
            source = source_of(given)
            params[section]["source"] = source if source == "hub" else os.path.relpath(given, made)
        elif params[section]["source"] != "hub":
            params[section]["source"] = os.path.relpath(folder / params[section]["source"], made)
    if data is not None and source_of(data) == "hub":
        params["data"].update(
            id=data, revision=None, subset=None, sha256=None, train_split="train", validation_split=None
        )
    elif data is not None:
        _describe(params, Path(data))
    if model is not None:
        on_hub = source_of(model) == "hub"
        params["model"].update(id=model if on_hub else Path(model).resolve().name, revision=None)
    params["registry"].update(name=name, experiment=name)
    params.yaml_set_start_comment(f"The recipe {name}. `dvc repro` here runs it; `recipe params` checks this file.")
    yaml = YAML(typ="rt")
    yaml.width = 200
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    with new_folder(made) as target:
        with (target / "params.yaml").open("w", encoding="utf-8", newline="\n") as file:
            yaml.dump(params, file)
        write_text(target / "dvc.yaml", pipeline_of(root))
        write_hub_file(target, params)
    return made


def pipeline_of(root: Path) -> str:
    """The dvc.yaml of a folder in presets/: the root's, but for where the code is."""
    text = (root / "dvc.yaml").read_text(encoding="utf-8")
    assert text.count("\n  - root: .\n") == 1
    return text.replace("\n  - root: .\n", "\n  - root: ../..\n")


def write_hub_file(folder: Path, params: Any) -> None:
    """Write the file `hub` that DVC finds behind `source: hub`, if the params have one. It is the same everywhere."""
    if HUB in (params["data"]["source"], params["model"]["source"]) and not (folder / HUB).exists():
        write_text(folder / HUB, HUB_FILE)


def _describe(params: Any, data: Path) -> None:
    """Fit the data section to the source: its splits where it is a folder, none where it is a file."""
    params["data"].update(id=None, revision=None, subset=None, sha256=None)
    if not data.is_dir():
        params["data"].update(train_split="train", validation_split=None)
        return
    splits = sorted({re.split(r"[-.]", file.name)[0] for file in data.iterdir() if file.is_file()})
    if "train" not in splits:
        raise DataError(f"{data} has no train split: its files are named {', '.join(splits) or 'nothing'}.")
    held = next((name for name in ("validation", "valid", "dev", "test") if name in splits), None)
    params["data"].update(train_split="train", validation_split=held)
