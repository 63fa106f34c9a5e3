"""Writes the checkpoints of a training run, and finds the one from which an interrupted run resumes.

transformers' Trainer writes a checkpoint in place and resumes from the newest one, even if the process died while
writing it. In this module, a checkpoint is complete or absent: its files are written to a temporary folder, listed with
the sha256 of each file, and synced to disk before the folder is renamed. A checkpoint that was damaged later is
detected by the list.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recipe.core.io import read_json, sha256_file, write_json

LIST = "complete.json"
SAVING = "saving"  # the temporary folder
KEPT = "kept"  # the folder in .recipe for the checkpoints of a complete training
NUM_KEPT = 2  # if the newest checkpoint is damaged, training resumes from the one before


@contextmanager
def new_checkpoint(folder: Path, step: int, num_kept: int | None = NUM_KEPT) -> Iterator[Path]:
    """Yield a temporary folder, in which the block must create `checkpoint-STEP`, and move the result to `folder`.

    Deletes all but the newest `num_kept` checkpoints, unless it is None. If the block fails, `folder` keeps its
    checkpoints.
    """
    saving, name = folder / SAVING, f"checkpoint-{step}"
    shutil.rmtree(saving, ignore_errors=True)
    saving.mkdir(parents=True)
    try:
        yield saving
        mark_complete(saving / name)
        shutil.rmtree(folder / name, ignore_errors=True)
        (saving / name).rename(folder / name)
        _sync(folder)
    finally:
        shutil.rmtree(saving, ignore_errors=True)
    if num_kept is not None:
        for old in checkpoints_in(folder)[num_kept:]:
            shutil.rmtree(old)


def mark_complete(checkpoint: Path) -> None:
    """Write the list of files that marks a checkpoint as complete, and sync the checkpoint to disk."""
    files = sorted(file for file in checkpoint.rglob("*") if file.is_file() and file.name != LIST)
    write_json(checkpoint / LIST, {file.relative_to(checkpoint).as_posix(): sha256_file(file) for file in files})
    for path in (*files, *{file.parent for file in files}, checkpoint):
        _sync(path)


def damage(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None if it has exactly the listed files, and they are unchanged."""
    try:
        listed = json.loads((checkpoint / LIST).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return f"{LIST} is missing or damaged"
    for name, sha256 in listed.items():
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if sha256_file(checkpoint / name) != sha256:
            return f"{name} is damaged"
    for file in sorted(checkpoint.rglob("*")):  # transformers might read a file merely because it exists
        name = file.relative_to(checkpoint).as_posix()
        if not file.is_dir() and name not in (LIST, *listed):
            return f"{name} is not in {LIST}"
    return None


def is_last(checkpoint: Path) -> bool:
    """Return whether this checkpoint was written after the last training step."""
    state = read_json(checkpoint / "trainer_state.json")
    return bool(state["global_step"] >= state["max_steps"])


def newest_complete(folder: Path) -> Path | None:
    """Return the newest complete checkpoint, or None, after deleting any newer damaged checkpoints."""
    for checkpoint in checkpoints_in(folder):
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint
        print(f"{checkpoint.name} can't be used, because {problem}; deleting it")
        shutil.rmtree(checkpoint)
    return None


def keep(checkpoints: Path, kept: Path, wanted: bool) -> None:
    """Delete the checkpoints of a complete training, or move them to the folder `kept` if they are wanted.

    Deletes the kept checkpoints of earlier trainings.
    """
    shutil.rmtree(kept, ignore_errors=True)
    if wanted and checkpoints.is_dir():
        kept.parent.mkdir(parents=True, exist_ok=True)
        checkpoints.rename(kept)
    shutil.rmtree(checkpoints, ignore_errors=True)


def remove_others(folder: Path, key: str) -> None:
    """Delete the checkpoints of runs with other settings, and print their size.

    `folder` contains a folder for each run. `key` is the name of the current run's folder.
    """
    others = [path for path in folder.glob("*") if path.name != key and path.is_dir()]
    if not others:
        return
    size = sum(file.stat().st_size for path in others for file in path.rglob("*") if file.is_file())
    for path in others:
        shutil.rmtree(path)
    count = "an interrupted run" if len(others) == 1 else f"{len(others)} interrupted runs"
    print(f"deleted the checkpoints of {count} with other settings ({size / 1e6:,.0f} MB)")


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder. The newest one is first."""
    paths = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(paths, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True)


def _sync(path: Path) -> None:
    """Make sure that a file or the entries of a folder are on disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
