"""What differs between runs, and so stands in no output: seconds, memory, the lock that was installed, the commit.

Kept in .recipe/notes.json of the recipe folder, which git and DVC ignore.
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
    """End this process when the one that started it dies. A killed `dvc` would leave its trainer running.

    Signals end it even where the starter ignores them, as docker/inside/repro has `dvc` do.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died in between
        raise MachineError("the process that started this one has ended.")


def end_if_asked() -> None:
    """Raise Stopped for a signal that came before this process listened: RECIPE_STOP names the file that holds it."""
    asked = Path(os.environ.get("RECIPE_STOP") or os.devnull)
    if asked.is_file():
        raise Stopped("stopped before this stage. `dvc repro` goes on with it.", int(asked.read_text()) - 128)


def read_notes(local: Path) -> dict[str, Any]:
    """The notes of all stages; empty where there are none, or where they can't be read."""
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
    """Note the block's seconds and the lock under `stage`; warn where another stage's output came from another lock."""
    lock = installed_lock()
    others = sorted(name for name, facts in read_notes(local).items() if facts.get("lock", lock) != lock)
    if others:
        print(f"note: {', '.join(others)} last ran under another lock file; `dvc repro -f` rebuilds under this one.")
    started = time.monotonic()
    yield
    remember(local, stage, {"stage_seconds": round(time.monotonic() - started, 2), "lock": lock})
