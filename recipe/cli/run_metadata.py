"""Stores run metadata: durations, peak memory, the lock file's sha256 and the MLflow run. Also handles stop signals.

Run metadata differs between runs, so it is not part of any output. It is stored in .recipe/notes.json in the recipe
folder. Git and DVC ignore this file.
"""

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recipe.core.environment import installed_lock
from recipe.core.errors import MachineError, Stopped
from recipe.core.io import write_json

NOTES = "notes.json"
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent() -> None:
    """Make this process end when its parent dies. Otherwise, killing `dvc` would leave the trainer running.

    Also make SIGTERM and SIGINT end this process even if the parent ignores these signals, as `dvc` does when
    docker/inside/repro runs it. On systems other than Linux, this function changes only the signal handling. Raises
    MachineError if the parent has already died.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # the parent died before prctl
        raise MachineError("the parent process has died. Run the command again.")


def end_if_asked() -> None:
    """Raise Stopped if docker/inside/repro received a stop signal before this stage started.

    In that case, the file named by the environment variable RECIPE_STOP contains the exit code.
    """
    stop_file = Path(os.environ.get("RECIPE_STOP") or os.devnull)
    if stop_file.is_file():
        raise Stopped("stopped before this stage started. Run `dvc repro` to resume.", int(stop_file.read_text()) - 128)


def read_notes(local: Path) -> dict[str, Any]:
    """Return the notes of all stages, or an empty dict if the file is missing or is not valid JSON."""
    try:
        return json.loads((local / NOTES).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def remember(local: Path, stage: str, facts: dict[str, Any]) -> None:
    """Add `facts` to the notes of a stage."""
    notes = read_notes(local)
    notes[stage] = {**notes.get(stage, {}), **facts}
    write_json(local / NOTES, notes)


@contextmanager
def record_stage(local: Path, stage: str) -> Iterator[None]:
    """Record the block's duration and the lock file's sha256 in the notes of `stage`, unless the block fails.

    Before the block runs, print the names of the stages that last ran with a different lock file.
    """
    lock = installed_lock()
    others = sorted(name for name, facts in read_notes(local).items() if facts.get("lock", lock) != lock)
    if others:
        print(f"note: {', '.join(others)} last ran with a different lock file. `dvc repro -f` reruns all stages.")
    started = time.monotonic()
    yield
    remember(local, stage, {"stage_seconds": round(time.monotonic() - started, 2), "lock": lock})
