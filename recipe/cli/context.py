"""The recipe folder that a command runs in: its checked params, its paths, and a progress bar for its stages."""

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

HERE = Path()
# Each stage is a folder of the package with params.py (its sections of params.yaml) and stage.py (its implementation).
STAGES = ("fetch", "prepare", "analyze", "train", "evaluate", "register")


def sections() -> dict[str, Any]:
    """The sections of params.yaml and their pydantic classes: LoraParams, in a stage's params.py, belongs to `lora`."""
    from recipe.core.config import Section

    classes = {}
    for stage in STAGES:
        module = import_module(f"recipe.{stage}.params")
        for name, value in vars(module).items():
            if isinstance(value, type) and issubclass(value, Section) and value.__module__ == module.__name__:
                classes[name.removesuffix("Params").lower()] = value
    return classes


def params() -> dict[str, Any]:
    """Read and check every section of ./params.yaml."""
    from recipe.core.config import read_params

    checked = read_params(HERE / "params.yaml", sections())
    checked["train"].micro_batch_size(checked["sequence"].max_length)  # raises if not even one sequence fits
    return checked


def paths() -> Any:
    """The paths of the stages' outputs (`vars: paths` in dvc.yaml)."""
    from recipe.core.paths import read_paths

    return read_paths(HERE)


def progress(items: Iterator[Any], what: str, total: int | None = None) -> Iterator[Any]:
    """Show a progress bar if stderr is a terminal."""
    from tqdm import tqdm

    return iter(tqdm(items, desc=what, total=total, disable=not sys.stderr.isatty(), leave=False))


def missing_output(error: FileNotFoundError) -> str | None:
    """The error message if the missing file is an output of a stage, else None."""
    if not (HERE / "dvc.yaml").is_file():
        return None
    path = Path(str(error.filename))
    outputs = [output for name, output in vars(paths()).items() if name != "folder"]
    if not any(path.is_relative_to(output) for output in outputs):
        return None
    return f"{path} is missing: an earlier stage creates it. Run `dvc repro`."
