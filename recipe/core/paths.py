"""Reads dvc.yaml, the one place where paths, dependencies and params of the stages are written.

paths = read_paths(Path("."))
fingerprint(Path("."), "train")   # what train's result depends on, as one sha256
"""

import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from recipe.core.config import load_yaml
from recipe.core.errors import MachineError, ParamsError
from recipe.core.io import sha256_bytes, sha256_tree

REFERENCE = re.compile(r"\$\{([\w.]+)\}")


@dataclass(frozen=True)
class Paths:
    """Where the stages' outputs are, relative to the recipe folder (`vars: paths` in dvc.yaml)."""

    data: Path
    base: Path
    prepared: Path
    analysis: Path
    adapter: Path
    training: Path
    curve: Path
    evaluation: Path
    report: Path
    receipt: Path
    # Not written in dvc.yaml: notes and checkpoints are no outputs, and git ignores them.
    local: Path = Path(".recipe")


def read_paths(folder: Path) -> Paths:
    """The paths of a recipe folder."""
    written = _variables(folder)["paths"]
    names = {field.name for field in fields(Paths)} - {"local"}
    if set(written) != names:
        raise ParamsError(f"{folder / 'dvc.yaml'}: vars.paths has {sorted(written)}, not {sorted(names)}.")
    return Paths(**{name: Path(path) for name, path in written.items()})


def repository(folder: Path) -> Path:
    """The folder above that holds requirements/ and MLflow's store: the recipe folder itself for the root recipe."""
    here = folder.resolve()
    return next((one for one in (here, *here.parents) if (one / "requirements").is_dir()), here)


def home(folder: Path) -> Path:
    """The repository that a user looks at: of an experiment in DVC's temporary folder, the one that started it."""
    here = repository(folder)
    outside = (one.parents[2] for one in here.parents if one.parts[-3:] == (".dvc", "tmp", "exps"))
    return repository(next(outside, here))


def fingerprint(folder: Path, stage: str) -> str:
    """One sha256 over the stage's dependencies (their contents) and params, as dvc.yaml declares them."""
    written = load_yaml(folder / "dvc.yaml")["stages"][stage]
    values = {**_variables(folder), **load_yaml(folder / "params.yaml")}
    contents = {}
    for dependency in written["deps"]:
        path = REFERENCE.sub(lambda found: str(_lookup(values, found[1])), dependency)
        if not (folder / path).exists():
            raise MachineError(f"{path} is missing: {stage} needs it, and an earlier stage makes it. Run `dvc repro`.")
        contents[path] = sha256_tree(folder / path)
    params = {key: _lookup(values, key) for key in written["params"]}
    return sha256_bytes(json.dumps([contents, params], sort_keys=True).encode())


def _variables(folder: Path) -> dict[str, Any]:
    """`vars` of dvc.yaml as one mapping."""
    return {name: value for entry in load_yaml(folder / "dvc.yaml")["vars"] for name, value in entry.items()}


def _lookup(values: dict[str, Any], key: str) -> Any:
    """The value under a dotted key."""
    node: Any = values
    for part in key.split("."):
        node = node[part]
    return node
