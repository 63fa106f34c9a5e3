"""Finds a trained adapter: the one in this recipe folder, or a registered version."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipe.cli import context
from recipe.cli.context import HERE
from recipe.core.errors import TrackingError
from recipe.core.io import read_json, read_json_lines
from recipe.core.paths import Paths, repository


def here(paths: Paths) -> tuple[Any, str, Callable[[], str | None]]:
    """Return the adapter of this recipe folder, its name in the registry, and a function that finds its MLflow run."""
    from recipe.export.trained import trained_here

    def run_id() -> str | None:
        from recipe.tracking.mlflow_run import Tracker, run_facts

        return Tracker(*run_facts(context.params(), paths)).find_run(finished=True)

    return trained_here(paths), context.params()["registry"].name, run_id


def registered_version(version: str, scratch: Path) -> tuple[Any, Path]:
    """Download a registered version to a folder. Return it, and the folder with its files."""
    from recipe.tracking.versions import download_version

    found = download_version(version, repository(HERE), scratch)
    files = found.folder / "artifacts"
    if not (files / "manifest.json").is_file():
        raise TrackingError(f"{version} was registered by an early version of this project. Register it again.")
    return found, files


def registered(version: str, scratch: Path, *, with_rows: bool = True) -> tuple[Any, str, Callable[[], str | None]]:
    """Download a registered version to the folder `scratch`, with its validation rows if `with_rows` is true.

    Returns its adapter, its name, and a function that returns its MLflow run.
    """
    from recipe.export.trained import Trained
    from recipe.tracking.versions import download_answers

    found, files = registered_version(version, scratch / "version")
    trained = Trained(
        folder=HERE,
        manifest=read_json(files / "manifest.json"),
        meta=read_json(files / "meta.json"),
        metrics=read_json(files / "train.json"),
        adapter=files / "adapter",
        tokenizer=files / "tokenizer",
        rows=read_json_lines(download_answers(found, repository(HERE), scratch)) if with_rows else [],
    )
    return trained, found.name, lambda: found.run_id
