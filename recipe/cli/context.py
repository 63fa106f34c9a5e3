"""The recipe folder that a command runs in: its params, checked, its paths, and a progress bar for its stages."""

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

HERE = Path()
# Each is a folder of the package with params.py (its sections of params.yaml) and stage.py (its work).
STAGES = ("fetch", "prepare", "analyze", "train", "evaluate", "register")


def sections() -> dict[str, Any]:
    """The pydantic class of every section of params.yaml: LoraParams in a stage's params.py is the section `lora`."""
    from recipe.core.config import Section

    found = {}
    for stage in STAGES:
        module = import_module(f"recipe.{stage}.params")
        for name, value in vars(module).items():
            if isinstance(value, type) and issubclass(value, Section) and value.__module__ == module.__name__:
                found[name.removesuffix("Params").lower()] = value
    return found


def params() -> dict[str, Any]:
    """Every section of ./params.yaml, checked."""
    from recipe.core.config import read_params

    checked = read_params(HERE / "params.yaml", sections())
    checked["train"].micro_batch_size(checked["sequence"].max_length)  # raises where not even one sequence fits
    return checked


def paths() -> Any:
    """Where the stages' outputs are (`vars: paths` in dvc.yaml)."""
    from recipe.core.paths import read_paths

    return read_paths(HERE)


def progress(items: Iterator[Any], what: str, total: int | None = None) -> Iterator[Any]:
    """A progress bar on a terminal, nothing elsewhere."""
    from tqdm import tqdm

    return iter(tqdm(items, desc=what, total=total, disable=not sys.stderr.isatty(), leave=False))
