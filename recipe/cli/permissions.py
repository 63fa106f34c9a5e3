"""Checks that the current user can write what a stage writes, before the stage begins its work.

check_writable([Path("models/adapter"), Path(".recipe")])    # raises MachineError with the path and the user
"""

import errno
import os
import pwd
from collections.abc import Iterable
from pathlib import Path

from recipe.core.config import load_yaml
from recipe.core.errors import MachineError
from recipe.core.paths import REFERENCE, Paths
from recipe.tracking.settings import URI, default_store

IN_PLACE = (".recipe", "mlflow")  # folders whose files are changed, not replaced
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


def written_by(paths: Paths, stage: str, part: str | None) -> list[Path]:
    """Return the paths that a stage writes: its outputs in dvc.yaml, .recipe and, for train and register, the store."""
    entry = load_yaml(paths.folder / "dvc.yaml")["stages"].get(stage, {})
    if part:
        outputs = [entry["foreach"][part]["made"]]
    else:
        declared = [out for kind in ("outs", "metrics", "plots") for out in entry.get(kind, [])]
        outputs = [out if isinstance(out, str) else next(iter(out)) for out in declared]
    names = (match[1].removeprefix("paths.") for out in outputs if (match := REFERENCE.match(out)))
    written = [vars(paths)[name] for name in names] + [paths.local]
    if stage in ("train", "register") and not os.environ.get(URI):
        written.append(default_store(paths.folder))
    return written


def check_writable(written: Iterable[Path]) -> None:
    """Raise MachineError if the user can't create, replace or write one of these files or folders.

    An output is replaced as a whole, so its parent and all folders in it must be writable. `.recipe` and MLflow's store
    are changed in place, so the files directly in them must be writable too.
    """
    for path in written:
        if path.is_dir() and path.name in IN_PLACE:
            items = [path, *(item for item in path.iterdir() if item.is_file())]
        else:
            parent = next(folder for folder in path.absolute().parents if folder.exists())
            items = [parent, *(item for item in (path, *path.rglob("*")) if item.is_dir())]
        for item in items:
            if not os.access(item, os.W_OK | (os.X_OK if item.is_dir() else 0)):
                raise MachineError(denied(item))


def denied(path: Path) -> str:
    """Return a message that says why the user can't use a path, and what to do."""
    user, problem = f"user {_name(os.geteuid())}", "can't be written or read"
    try:
        status = path.stat()
        read_only = bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return f"{path} {problem} by {user}. Give this user access to it, or run the command as its owner."
    if read_only:
        return f"{path} {problem} by {user}, because it is on a read-only file system. Mount it as writable."
    return (
        f"{path} {problem} by {user}: it belongs to user {_name(status.st_uid)} (mode {status.st_mode & 0o777:03o}). "
        f"Run the command as that user, or change the owner: sudo chown -R {os.geteuid()} {path}"
    )


def _name(uid: int) -> str:
    """Return a user's name and number, or only the number if the system does not know the user."""
    try:
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return str(uid)
