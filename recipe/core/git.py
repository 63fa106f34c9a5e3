"""Runs git, for the commands that clone a commit or record it."""

import subprocess
from pathlib import Path

from recipe.core.errors import MachineError


def git(folder: Path, *arguments: str, check: bool = True) -> str:
    """Return the output of a git command in `folder`.

    If git is not installed or the command fails, raises MachineError. If `check` is false, returns an empty string
    instead.
    """
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        if check:
            raise MachineError("git is not installed, but this command needs it.") from None
        return ""
    if done.returncode and check:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise MachineError(f"`git {arguments[0]}` failed in {folder}: {reason}")
    return done.stdout if done.returncode == 0 else ""
