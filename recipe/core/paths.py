"""Reads dvc.yaml, the only place where the paths, dependencies and params of the stages are declared.

paths = read_paths(Path("."))
fingerprint(Path("."), "train")    # one sha256 over everything that train's result depends on
"""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from recipe.core.config import load_yaml
from recipe.core.errors import MachineError, ParamsError
from recipe.core.io import sha256_bytes, sha256_tree

REFERENCE = re.compile(r"\$\{([\w.]+)\}")


class Paths(SimpleNamespace):
    """Inputs and outputs of a recipe folder: `vars: paths` in dvc.yaml, each relative to the working directory.

    A new stage adds its own names in dvc.yaml only; those below are used by more than one stage.
    """

    folder: Path  # the recipe folder; relative paths in params.yaml and in manifests start here
    local: Path  # checkpoints and run metadata: not outputs, ignored by git
    raw: Path
    base: Path
    prepared: Path
    analysis: Path
    adapter: Path
    train_metrics: Path
    loss_curve: Path
    evaluate_metrics: Path
    evaluation: Path
    receipt: Path


def read_paths(folder: Path) -> Paths:
    """The paths of a recipe folder. Raises ParamsError if dvc.yaml lacks one of them."""
    declared = _variables(folder)["paths"]
    missing = [name for name in Paths.__annotations__ if name not in {*declared, "folder", "local"}]
    if missing:
        raise ParamsError(f"{folder / 'dvc.yaml'}: vars.paths lacks {', '.join(missing)}.")
    return Paths(
        folder=folder, local=folder / ".recipe", **{name: folder / Path(path) for name, path in declared.items()}
    )


def repository(folder: Path) -> Path:
    """The root of the repository, with requirements/ and MLflow's store; for the root recipe, its own folder."""
    here = folder.resolve()
    return next((parent for parent in (here, *here.parents) if (parent / "requirements").is_dir()), here)


def home(folder: Path) -> Path:
    """The user's repository: for an experiment in DVC's temporary folder, the repository that started it."""
    here = repository(folder)
    outside = (parent.parents[2] for parent in here.parents if parent.parts[-3:] == (".dvc", "tmp", "exps"))
    return repository(next(outside, here))


def fingerprint(folder: Path, stage: str) -> str:
    """One sha256 over the stage's dependencies (their contents) and params, as dvc.yaml declares them."""
    declared = load_yaml(folder / "dvc.yaml")["stages"][stage]
    values = {**_variables(folder), **load_yaml(folder / "params.yaml")}
    contents = {}
    for dependency in declared["deps"]:
        path = REFERENCE.sub(lambda match: str(_lookup(values, match[1])), dependency)
        if not (folder / path).exists():
            raise MachineError(
                f"{path} is missing: {stage} needs it, and an earlier stage creates it. Run `dvc repro`."
            )
        # In code folders only Python files count, as for DVC (.dvcignore).
        contents[path] = sha256_tree(folder / path, suffix=".py" if "/recipe/" in f"/{path}" else "")
    params = {key: _lookup(values, key) for key in declared["params"]}
    return sha256_bytes(json.dumps([contents, params], sort_keys=True).encode())


def _variables(folder: Path) -> dict[str, Any]:
    """`vars` of dvc.yaml as one mapping."""
    return {name: value for entry in load_yaml(folder / "dvc.yaml")["vars"] for name, value in entry.items()}


def _lookup(values: dict[str, Any], key: str) -> Any:
    """The value of a dotted key."""
    node: Any = values
    for part in key.split("."):
        node = node[part]
    return node
