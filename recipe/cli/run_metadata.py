"""Run metadata, kept out of outputs so that they stay reproducible: time, memory, the installed lock, the MLflow run.

Stored in .recipe/notes.json of the recipe folder, which git and DVC ignore.
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
    """End this process when its parent dies. Otherwise a killed `dvc` would leave its trainer running.

    SIGTERM and SIGINT end this process even if the parent ignores them, as `dvc` does under docker/inside/repro.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # the parent died before prctl
        raise MachineError("the parent process has ended.")


def end_if_asked() -> None:
    """Raise Stopped if a signal arrived before this process started. The file RECIPE_STOP then has the exit code."""
    stop_file = Path(os.environ.get("RECIPE_STOP") or os.devnull)
    if stop_file.is_file():
        raise Stopped("stopped before this stage. Run `dvc repro` to resume.", int(stop_file.read_text()) - 128)


def read_notes(local: Path) -> dict[str, Any]:
    """The notes of all stages; empty if the file is missing or invalid."""
    try:
        return json.loads((local / NOTES).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def remember(local: Path, stage: str, facts: dict[str, Any]) -> None:
    """Add facts to a stage's notes."""
    notes = read_notes(local)
    notes[stage] = {**notes.get(stage, {}), **facts}
    write_json(local / NOTES, notes)


@contextmanager
def record_stage(local: Path, stage: str) -> Iterator[None]:
    """Record the duration of the block and the lock for `stage`; note stages that last ran with a different lock."""
    lock = installed_lock()
    others = sorted(name for name, facts in read_notes(local).items() if facts.get("lock", lock) != lock)
    if others:
        print(f"note: {', '.join(others)} last ran with a different lock file; `dvc repro -f` reruns all stages.")
    started = time.monotonic()
    yield
    remember(local, stage, {"stage_seconds": round(time.monotonic() - started, 2), "lock": lock})
