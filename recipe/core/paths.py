"""Reads dvc.yaml, the one place where paths, dependencies and params of the stages are written.

paths = read_paths(Path("."))
fingerprint(Path("."), "train")    # what train's result depends on, as one sha256
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
    """Where a recipe folder's inputs and outputs are: `vars: paths` in dvc.yaml, each seen from the working directory.

    A new stage adds its own names in dvc.yaml alone; those below are used by more than one stage.
    """

    folder: Path  # the recipe folder; relative paths in params.yaml and in manifests start here
    local: Path  # checkpoints and run metadata: no outputs, ignored by git
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
    """The paths of a recipe folder. Raises ParamsError where dvc.yaml lacks one."""
    written = _variables(folder)["paths"]
    missing = [name for name in Paths.__annotations__ if name not in {*written, "folder", "local"}]
    if missing:
        raise ParamsError(f"{folder / 'dvc.yaml'}: vars.paths does not name {', '.join(missing)}.")
    return Paths(
        folder=folder, local=folder / ".recipe", **{name: folder / Path(path) for name, path in written.items()}
    )


def repository(folder: Path) -> Path:
    """The folder above that holds requirements/ and MLflow's store: the recipe folder itself for the root recipe."""
    here = folder.resolve()
    return next((parent for parent in (here, *here.parents) if (parent / "requirements").is_dir()), here)


def home(folder: Path) -> Path:
    """The repository that a user looks at: of an experiment in DVC's temporary folder, the one that started it."""
    here = repository(folder)
    outside = (parent.parents[2] for parent in here.parents if parent.parts[-3:] == (".dvc", "tmp", "exps"))
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
        # Of the code, only Python files: DVC looks at those alone (.dvcignore).
        contents[path] = sha256_tree(folder / path, suffix=".py" if "/recipe/" in f"/{path}" else "")
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
