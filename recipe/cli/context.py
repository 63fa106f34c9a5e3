"""The recipe folder that a command runs in: its params, checked, its paths, and a progress bar for its stages.

Every stage declares the class of its own section; this file alone knows them all.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path()


def sections() -> dict[str, Any]:
    """The class of every section of params.yaml."""
    from recipe.analyze.params import AnalyzeParams
    from recipe.evaluate.params import EvaluateParams
    from recipe.fetch.params import DataParams, ModelParams
    from recipe.prepare.params import SequenceParams
    from recipe.register.params import RegistryParams
    from recipe.train.params import LoraParams, TrainParams

    return {
        "data": DataParams,
        "model": ModelParams,
        "sequence": SequenceParams,
        "analyze": AnalyzeParams,
        "lora": LoraParams,
        "train": TrainParams,
        "evaluate": EvaluateParams,
        "registry": RegistryParams,
    }


def params() -> dict[str, Any]:
    """Every section of ./params.yaml, checked."""
    from recipe.core.config import read_params

    made = read_params(HERE / "params.yaml", sections())
    made["train"].micro_batch_size(made["sequence"].max_length)  # raises where not even one sequence fits
    return made


def paths() -> Any:
    """Where the stages' outputs are (`vars: paths` in dvc.yaml)."""
    from recipe.core.paths import read_paths

    return read_paths(HERE)


def progress(items: Iterator[Any], what: str, total: int | None = None) -> Iterator[Any]:
    """A progress bar on a terminal, nothing elsewhere."""
    from tqdm import tqdm

    return iter(tqdm(items, desc=what, total=total, disable=not sys.stderr.isatty(), leave=False))
