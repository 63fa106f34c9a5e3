"""Finds the checkpoint that a killed training goes on from.

transformers' Trainer takes the newest folder, even one that was half written when the process died. Here a checkpoint
counts only once a list of its files' sha256 stands in it, which is written last.
"""

import json
import shutil
from pathlib import Path

from recipe.core.io import read_json, sha256_file, write_json

LIST = "complete.json"


def mark_complete(checkpoint: Path) -> None:
    """Write the list that makes a checkpoint count."""
    files = sorted(file for file in checkpoint.rglob("*") if file.is_file() and file.name != LIST)
    write_json(checkpoint / LIST, {file.relative_to(checkpoint).as_posix(): sha256_file(file) for file in files})


def is_complete(checkpoint: Path) -> bool:
    """Whether the list is there and every file in it is as it was."""
    try:
        listed = json.loads((checkpoint / LIST).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return all(
        (checkpoint / name).is_file() and sha256_file(checkpoint / name) == sha256 for name, sha256 in listed.items()
    )


def is_last(checkpoint: Path) -> bool:
    """Whether training had ended when this checkpoint was written."""
    state = read_json(checkpoint / "trainer_state.json")
    return bool(state["global_step"] >= state["max_steps"])


def newest_complete(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None. Damaged ones newer than it are removed, so that nothing takes them."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    for checkpoint in sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True):
        if is_complete(checkpoint):
            return checkpoint
        print(f"{checkpoint.name} is damaged or was not finished, and is left out")
        shutil.rmtree(checkpoint)
    return None
