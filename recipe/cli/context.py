"""Provides the params and paths of the current recipe folder, and a progress bar for the stages."""

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

HERE = Path()
# Each stage is a subpackage in which params.py declares sections of params.yaml and stage.py implements the stage.
STAGES = ("fetch", "prepare", "analyze", "train", "evaluate", "register")


def sections() -> dict[str, Any]:
    """Return the pydantic class of each section of params.yaml.

    The classes are in the stages' params.py files. LoraParams, for example, is the class of the `lora` section.
    """
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
    checked["train"].micro_batch_size(checked["sequence"].max_length)  # raises ParamsError if one sequence is too long
    return checked


def paths() -> Any:
    """Return this recipe folder's paths, which are declared under `vars: paths` in dvc.yaml."""
    from recipe.core.paths import read_paths

    return read_paths(HERE)


def progress(items: Iterator[Any], what: str, total: int | None = None) -> Iterator[Any]:
    """Iterate over the items, and show a progress bar if stderr is a terminal."""
    from tqdm import tqdm

    return iter(tqdm(items, desc=what, total=total, disable=not sys.stderr.isatty(), leave=False))


def missing_output(error: FileNotFoundError) -> str | None:
    """Return an error message if the missing file is a stage output or is in .recipe, or None otherwise."""
    if not (HERE / "dvc.yaml").is_file():
        return None
    path = Path(str(error.filename))
    outputs = [output for name, output in vars(paths()).items() if name != "folder"]
    if not any(path.is_relative_to(output) for output in outputs):
        return None
    return f"{path} is missing, but an earlier stage should have created it. Run `dvc repro`."
