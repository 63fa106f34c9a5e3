"""Tags that lead from a run back to its code, environment and image."""

import os
import subprocess
from pathlib import Path

from recipe.core.environment import LOCKS, installed_lock
from recipe.core.io import sha256_file

SOURCES = ("recipe", "dvc.yaml", "*params.yaml", "requirements", "demo")  # what a commit stands for; no outputs


def lineage(repository: Path) -> dict[str, str]:
    """Tags that lead back to code, environment and image: the git commit, the lock's sha256, the image's id."""
    tags = {"lock_sha256": installed_lock(), "image": os.environ.get("RECIPE_IMAGE", "none")}
    commit = _git(repository, "rev-parse", "HEAD")
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
    """What git prints, or nothing where there is no git or no repository."""
    try:
        done = subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()
