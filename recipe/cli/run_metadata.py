"""What differs between runs, and so stands in no output: seconds, memory, the lock that was installed, the commit.

Kept in .recipe/notes.json of the recipe folder, which git and DVC ignore.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recipe.core.errors import MachineError, Stopped
from recipe.core.io import sha256_file, write_json

NOTES = "notes.json"
SOURCES = ("recipe", "dvc.yaml", "*params.yaml", "requirements", "demo")  # what a commit stands for; no outputs
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


def installed_lock() -> str:
    """The sha256 of the lock file that this environment was installed from; `make` writes it there."""
    path = Path(sys.prefix) / "recipe-lock.sha256"
    return path.read_text(encoding="utf-8").split()[0] if path.is_file() else "unknown"


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
def note(local: Path, stage: str) -> Iterator[None]:
    """Note the block's seconds and the lock under `stage`; warn where another stage's output came from another lock."""
    lock = installed_lock()
    others = sorted(name for name, facts in read_notes(local).items() if facts.get("lock", lock) != lock)
    if others:
        print(f"note: {', '.join(others)} last ran under another lock file; `dvc repro -f` rebuilds under this one.")
    started = time.monotonic()
    yield
    remember(local, stage, {"stage_seconds": round(time.monotonic() - started, 2), "lock": lock})


def lineage(repository: Path) -> dict[str, str]:
    """Tags that lead back to code, environment and image: the git commit, the lock's sha256, the image's id."""
    tags = {"lock_sha256": installed_lock(), "image": os.environ.get("RECIPE_IMAGE", "none")}
    commit = _git(repository, "rev-parse", "HEAD")
    if commit:
        changed = _git(repository, "status", "--porcelain", "--untracked-files=no", "--", *SOURCES)
        tags["git_commit"] = commit
        tags["git_changed"] = "yes" if changed else "no"
    for name in ("cpu", "cuda"):
        path = repository / "requirements" / f"{name}.lock"
        if path.is_file() and sha256_file(path) == tags["lock_sha256"]:
            tags["lock"] = path.name
    return tags


def _git(repository: Path, *arguments: str) -> str:
    """What git prints, or nothing where there is no git or no repository."""
    try:
        done = subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def run_address(server: str, experiment_id: str, run_id: str) -> str:
    """Where MLflow's UI shows a run, in its view for training rather than for agents."""
    return f"{server}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"
