"""Reads and writes files. An output is either complete or absent, and its format is the same on every machine.

Every stage uses this module. A file or folder is created next to its destination under a temporary name, and then
renamed.
"""

import fcntl
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recipe.core.errors import DataError, MachineError
from recipe.core.format import first_line

CHUNK_BYTES = 1 << 20


def sha256_bytes(data: bytes) -> str:
    """Return the sha256 of `data` in lowercase hex."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file's content in lowercase hex. The file is read in chunks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_tree(path: Path, suffix: str = "") -> str:
    """Return the sha256 of a file, or a combined sha256 of the relative paths and contents of all files in a folder.

    In a folder, only files whose names end in `suffix` are included, and `__pycache__` folders are skipped.
    """
    if path.is_file():
        return sha256_file(path)
    files = sorted(
        file.relative_to(path).as_posix()
        for file in path.rglob("*")
        if file.is_file() and file.name.endswith(suffix) and "__pycache__" not in file.parts
    )
    return sha256_listing({name: sha256_file(path / name) for name in files})


def sha256_listing(files: dict[str, str]) -> str:
    """Return the combined sha256 of a {name: sha256} listing. The order of the keys does not affect the result."""
    return sha256_bytes("".join(f"{sha}  {name}\n" for name, sha in sorted(files.items())).encode())


def json_text(value: object) -> str:
    """Return indented JSON that ends with a newline. Keys keep their order. Raises ValueError for NaN and infinity."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


class JsonObject(dict[str, Any]):
    """An object from a JSON file. `object[key]` raises DataError with the file's path if the key is missing."""

    def __init__(self, values: dict[str, Any], path: Path) -> None:
        super().__init__(values)
        self.path = path

    def __missing__(self, key: str) -> Any:
        raise DataError(
            f"{self.path} has no key {key!r}, probably because a different version of the recipe wrote the file. "
            "Run `dvc repro`."
        )


def read_json(path: Path) -> Any:
    """Return the value in a JSON file. Objects at any depth are instances of JsonObject.

    Raises MachineError if the file is missing or can't be read, and DataError if it is damaged.
    """
    return _parse_json(_read_output(path), path)


def read_json_object(path: Path) -> JsonObject:
    """Return the object in a JSON file. Raises DataError if the file contains a different value, such as a list."""
    value = read_json(path)
    if not isinstance(value, JsonObject):
        raise DataError(f"{path} contains {json.dumps(value)[:40]}, but it must contain a JSON object.")
    return value


def read_json_lines(path: Path) -> list[Any]:
    """Return the values in a file that contains one JSON value per line."""
    # Do not use `splitlines`, because it would also split at U+2028 inside a string.
    return [_parse_json(line, path) for line in _read_output(path).split("\n") if line]


@contextmanager
def reading(path: Path, *damage: type[Exception]) -> Iterator[None]:
    """Convert errors from reading an earlier stage's output to errors with one-line messages.

    Raises MachineError if the file is missing or can't be read, and DataError if the file is damaged. A ValueError, an
    error of a class in `damage`, or an OSError without an errno (Arrow raises these) means that the file is damaged.
    """
    errors: tuple[type[Exception], ...] = (OSError, ValueError, *damage)
    try:
        yield
    except FileNotFoundError:
        raise MachineError(
            f"{path} is missing, but an earlier stage should have created it. Run `dvc repro`."
        ) from None
    except errors as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise MachineError(f"{path} can't be read: {error.strerror}.") from None
        raise DataError(f"{path} is damaged ({first_line(error)}). Run `dvc repro` to restore it.") from None


def check_sha256(path: Path, expected: str) -> None:
    """Raise DataError if the sha256 of a file or folder (see sha256_tree) differs from `expected`."""
    if sha256_tree(path) != expected:
        raise DataError(f"{path} is damaged or was changed (expected sha256 {expected}). Run `dvc repro`.")


def check_count(path: Path, found: int, expected: int, what: str = "rows") -> None:
    """Raise DataError if a file has fewer or more rows than its stage wrote.

    A file that was cut off between two rows can still be parsed, so only the number of rows reveals the damage.
    """
    if found != expected:
        raise DataError(f"{path} is damaged ({found:,} {what} instead of {expected:,}). Run `dvc repro` to restore it.")


def _read_output(path: Path) -> str:
    with reading(path):
        return path.read_text(encoding="utf-8")


def _parse_json(text: str, path: Path) -> Any:
    try:
        return json.loads(text, object_hook=lambda values: JsonObject(values, path))
    except (ValueError, RecursionError) as error:  # RecursionError: the values are nested too deeply
        raise DataError(f"{path} is not valid JSON: {error}.") from None


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file with `\\n` line endings, either completely or not at all. Creates the parent folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write `json_text(value)` to a file, either completely or not at all."""
    write_text(path, json_text(value))


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder. It is renamed to `path` if the block succeeds, and deleted if the block fails.

    An existing folder at `path` is replaced. Temporary folders of killed processes are deleted: a stage holds a lock,
    so no other process writes this output.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def file_lock(path: Path, what: str = "", *, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock (flock) on the file `path` during the block. If the process dies, the kernel releases it.

    If `wait` is true, wait while another process holds the lock. Otherwise, raise a MachineError that says that `what`
    is already running. DVC's own lock is not sufficient. It checks process ids, so it detects neither processes in
    other containers nor a trainer that outlives its DVC process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise MachineError(
                f"{what} is already running here ({holder} holds {path}). Wait for it to finish, or stop it."
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield
