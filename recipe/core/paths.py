"""Reads dvc.yaml, the only place where the stages' paths, dependencies and params are declared.

paths = read_paths(Path("."))
fingerprint(Path("."), "train")    # a sha256 of the train stage's dependencies and params
"""

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from recipe.core.config import load_yaml
from recipe.core.errors import MachineError, ParamsError
from recipe.core.io import sha256_bytes, sha256_tree

REFERENCE = re.compile(r"\$\{([\w.]+)\}")


class Paths(SimpleNamespace):
    """The paths of the stages' inputs and outputs, from `vars: paths` in dvc.yaml, relative to the working directory.

    dvc.yaml must declare all paths below except `folder` and `local`. It may declare additional paths, for example for
    a new stage. Additional paths need no entry here.
    """

    folder: Path  # the recipe folder, to which the paths in params.yaml and in manifests are relative
    local: Path  # checkpoints and run metadata, which are not outputs and are ignored by git
    raw: Path
    base: Path
    prepared: Path
    analysis: Path
    adapter: Path
    training: Path
    train_metrics: Path
    loss_curve: Path
    evaluate_metrics: Path
    evaluation: Path
    receipt: Path


def read_paths(folder: Path) -> Paths:
    """Read the paths of a recipe folder from dvc.yaml. Raises ParamsError if a required path is missing."""
    declared = _variables(folder)["paths"]
    missing = [name for name in Paths.__annotations__ if name not in {*declared, "folder", "local"}]
    if missing:
        raise ParamsError(f"{folder / 'dvc.yaml'}: vars.paths does not declare {', '.join(missing)}.")
    return Paths(
        folder=folder, local=folder / ".recipe", **{name: folder / Path(path) for name, path in declared.items()}
    )


def repository(folder: Path) -> Path:
    """Return the root of the repository: the closest folder at or above `folder` that contains requirements/.

    If no such folder exists, return `folder` itself. The result is an absolute path.
    """
    here = folder.resolve()
    return next((parent for parent in (here, *here.parents) if (parent / "requirements").is_dir()), here)


def home(folder: Path) -> Path:
    """Return the root of the user's repository, even if `folder` is in a temporary copy of it.

    DVC creates temporary copies for experiments in .dvc/tmp/exps.
    """
    here = repository(folder)
    outside = (parent.parents[2] for parent in here.parents if parent.parts[-3:] == (".dvc", "tmp", "exps"))
    return repository(next(outside, here))


def make_command(target: str, folder: Path) -> str:
    """Return the command that runs a target of the repository's Makefile from `folder`."""
    root = os.path.relpath(repository(folder), folder.resolve())
    return f"make {target}" if root == "." else f"make -C {root} {target}"


def fingerprint(folder: Path, stage: str) -> str:
    """Return a sha256 of the contents of the stage's dependencies and the values of the stage's params.

    dvc.yaml declares the dependencies and params of each stage. Raises MachineError if a dependency is missing.
    """
    declared = load_yaml(folder / "dvc.yaml")["stages"][stage]
    values = {**_variables(folder), **load_yaml(folder / "params.yaml")}
    contents = {}
    for dependency in declared["deps"]:
        path = REFERENCE.sub(lambda match: str(_lookup(values, match[1])), dependency)
        if not (folder / path).exists():
            raise MachineError(f"{path} is missing, but the {stage} stage depends on it. Run `dvc repro`.")
        # In code folders, only Python files are included, as in DVC (see .dvcignore).
        contents[path] = sha256_tree(folder / path, suffix=".py" if "/recipe/" in f"/{path}" else "")
    params = {key: _lookup(values, key) for key in declared["params"]}
    return sha256_bytes(json.dumps([contents, params], sort_keys=True).encode())


def _variables(folder: Path) -> dict[str, Any]:
    """Return the entries of `vars` in dvc.yaml, merged into a single mapping."""
    return {name: value for entry in load_yaml(folder / "dvc.yaml")["vars"] for name, value in entry.items()}


def _lookup(values: dict[str, Any], key: str) -> Any:
    """Return the value of a dotted key in nested mappings."""
    node: Any = values
    for part in key.split("."):
        node = node[part]
    return node
