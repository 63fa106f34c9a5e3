"""Creates the tags that trace a run back to its code, environment and image."""

import os
import subprocess
from pathlib import Path

from recipe.core.environment import LOCKS, installed_lock
from recipe.core.io import sha256_file

# The git_changed tag says whether these files differ from the commit. Outputs of the stages are not listed.
SOURCES = ("recipe", "dvc.yaml", "*params.yaml", "requirements", "demo")


def lineage(repository: Path) -> dict[str, str]:
    """Return tags that identify the code, the environment and the image.

    The tags include the git commit, the lock file's sha256 and the image's id.
    """
    tags = {"lock_sha256": installed_lock(), "image": os.environ.get("RECIPE_IMAGE", "none")}
    # If the code is in an unpacked archive inside a different repository, that repository's commit is unrelated.
    commit = _git(repository, "rev-parse", "HEAD") if (repository / ".git").exists() else ""
    if commit:
        changed = _git(repository, "status", "--porcelain", "--untracked-files=no", "--", *SOURCES)
        tags["git_commit"] = commit
        tags["git_changed"] = "yes" if changed else "no"
    for name in LOCKS:
        path = repository / "requirements" / name
        if path.is_file() and sha256_file(path) == tags["lock_sha256"]:
            tags["lock"] = path.name
    return tags


def _git(repository: Path, *arguments: str) -> str:
    """Return the output of a git command, or an empty string if git is not installed or finds no repository."""
    try:
        done = subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()
