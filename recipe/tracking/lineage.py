"""Creates the tags that trace a run back to its code, environment and image."""

import os
from pathlib import Path

from recipe.core.environment import installed_lock, lock_name
from recipe.core.git import git

# The git_changed tag says whether these files differ from the commit. Outputs of the stages are not listed.
SOURCES = ("recipe", "dvc.yaml", "*params.yaml", "requirements", "demo")


def lineage(repository: Path) -> dict[str, str]:
    """Return tags that identify the code, the environment and the image.

    The tags include the git commit, the lock file's sha256 and the image's id.
    """
    tags = {"lock_sha256": installed_lock(), "image": os.environ.get("RECIPE_IMAGE", "none")}
    # If the code is in an unpacked archive inside a different repository, that repository's commit is unrelated.
    commit = git(repository, "rev-parse", "HEAD", check=False).strip() if (repository / ".git").exists() else ""
    if commit:
        changed = git(repository, "status", "--porcelain", "--untracked-files=no", "--", *SOURCES, check=False)
        tags["git_commit"] = commit
        tags["git_changed"] = "yes" if changed else "no"
    if name := lock_name(repository / "requirements", tags["lock_sha256"]):
        tags["lock"] = name
    return tags
