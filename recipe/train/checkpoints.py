"""Finds the checkpoint from which an interrupted training run resumes.

The Trainer class in transformers resumes from the newest checkpoint folder, even if the process died while writing the
folder. In this module, a checkpoint is complete only if it contains a list of its files with the sha256 of each file.
This list is written last.
"""

import json
import shutil
from pathlib import Path

from recipe.core.io import read_json, sha256_file, write_json

LIST = "complete.json"


def mark_complete(checkpoint: Path) -> None:
    """Write the file list that marks a checkpoint as complete."""
    files = sorted(file for file in checkpoint.rglob("*") if file.is_file() and file.name != LIST)
    write_json(checkpoint / LIST, {file.relative_to(checkpoint).as_posix(): sha256_file(file) for file in files})


def is_complete(checkpoint: Path) -> bool:
    """Return whether the file list exists and every listed file is present and unchanged."""
    try:
        listed = json.loads((checkpoint / LIST).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return all(
        (checkpoint / name).is_file() and sha256_file(checkpoint / name) == sha256 for name, sha256 in listed.items()
    )


def is_last(checkpoint: Path) -> bool:
    """Return whether this checkpoint was written after the last training step."""
    state = read_json(checkpoint / "trainer_state.json")
    return bool(state["global_step"] >= state["max_steps"])


def newest_complete(folder: Path) -> Path | None:
    """Delete the incomplete checkpoints that are newer than the newest complete checkpoint.

    Return the newest complete checkpoint. If no checkpoint is complete, delete all checkpoints and return None.
    """
    checkpoints = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    for checkpoint in sorted(checkpoints, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True):
        if is_complete(checkpoint):
            return checkpoint
        print(f"{checkpoint.name} is incomplete or damaged; deleting it")
        shutil.rmtree(checkpoint)
    return None
