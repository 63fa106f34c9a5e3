"""Checks that a disk has room for a stage's outputs, and explains errors that a full disk causes.

with disk_space(paths.folder, 120_000_000, "The train stage"):
    ...    # raises MachineError if less is free, or if a write fails because the disk is full
"""

import errno
import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recipe.core.errors import MachineError
from recipe.core.format import format_bytes

# safetensors and torch write files in native code, and SQLite reports errors as text, so these have no errno.
FULL = re.compile(r"No space left on device|Disk quota exceeded|database or disk is full")
UNCLEAR = re.compile(r"disk I/O error|PytorchStreamWriter failed|unexpected pos \d+ vs")  # one of several causes
NEARLY_FULL_BYTES = 16_000_000
TOO_LARGE = re.compile(r"File too large")
INTACT = "The outputs of complete stages and the last checkpoints are intact; `dvc repro` continues from them."


@contextmanager
def disk_space(folder: Path, needed: int, who: str) -> Iterator[None]:
    """Check that the disk of `folder` has `needed` bytes free, and convert errors of a full disk in the block.

    `needed` is an estimate. Raises MachineError if there is too little space, a quota is used up, or a file exceeds the
    limit on file sizes.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise MachineError(
            f"{who} needs about {format_bytes(needed)} on the disk of {folder.resolve()}, but only "
            f"{format_bytes(free)} is free. Free up space. {INTACT}"
        )
    try:
        yield
    except Exception as error:  # all but errors of a full disk are raised again
        problem = space_problem(error, folder)
        if problem is None:
            raise
        size = f" {who} needs about {format_bytes(needed)}." if needed else ""
        raise MachineError(f"{problem}{size} {INTACT}") from None


def space_problem(error: BaseException, folder: Path) -> str | None:
    """Return a sentence that says which disk or limit stopped a write and what is free, or None for other errors.

    `folder` is used if the error does not name a file.
    """
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    for cause in _causes(error):
        number = cause.errno if isinstance(cause, OSError) else None
        text = "" if number else str(cause)
        name = getattr(cause, "filename", None)
        place = Path(name) if isinstance(name, str) else folder
        free = shutil.disk_usage(_existing(place)).free
        unclear = UNCLEAR.search(text) is not None
        if number == errno.EFBIG or TOO_LARGE.search(text) or (unclear and limit != resource.RLIM_INFINITY):
            return (
                f"{place} can't be written, because this user's files may have at most {format_bytes(limit)}. Raise "
                "the limit (`ulimit -f`)."
            )
        if number in (errno.ENOSPC, errno.EDQUOT) or FULL.search(text) or (unclear and free < NEARLY_FULL_BYTES):
            is_quota = number == errno.EDQUOT
            reason = "your disk quota is used up" if is_quota else f"its disk has only {format_bytes(free)} free"
            return f"{place} can't be written, because {reason}. Free up space."
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and the errors that led to it. The innermost error, which has the file's name, is first."""
    if error is not None:
        yield from _causes(error.__cause__ or error.__context__)
        yield error


def _existing(path: Path) -> Path:
    """Return the closest existing folder at or above a path."""
    return next(folder for folder in (path.resolve(), *path.resolve().parents) if folder.is_dir())
