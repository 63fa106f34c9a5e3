"""Reads the files of a commit byte for byte, without a checkout."""

import subprocess
from pathlib import Path

from recipe.core.git import git


def has_commit(repository: Path, commit: str) -> bool:
    """Return whether a folder is in a git repository that contains the commit."""
    return bool(git(repository, "rev-parse", "--verify", "-q", f"{commit}^{{commit}}", check=False))


def blob(repository: Path, commit: str, path: str) -> bytes | None:
    """Return the content of a file in a commit, or None if the commit does not contain the file."""
    command = ["git", "-C", str(repository), "cat-file", "blob", f"{commit}:{path}"]
    done = subprocess.run(command, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None


def files_that_differ(repository: Path, commit: str, folder: str, copy: Path) -> tuple[int, list[str]]:
    """Compare a copy of the Python files in a folder of the repository with the commit.

    Returns the number of files in the commit, and the names of the files that differ, are missing or were added.
    """
    listing = git(repository, "ls-tree", "-r", "-z", "--full-tree", commit, "--", f"{folder}/")
    entries = (entry.partition("\t") for entry in listing.split("\0") if entry)
    committed = {path: about.split()[2] for about, _, path in entries if path.endswith(".py")}
    names = sorted(path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file())
    # Without filters, git hashes the bytes of the file.
    paths = [str(copy / name) for name in names]
    hashes = git(repository, "hash-object", "--no-filters", "--", *paths).split() if names else []
    found = {f"{folder}/{name}": value for name, value in zip(names, hashes, strict=True)}
    differing = {path for path in committed.keys() | found.keys() if committed.get(path) != found.get(path)}
    return len(committed), sorted(differing)
