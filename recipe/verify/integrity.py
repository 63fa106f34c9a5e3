"""Compares outputs in a recipe folder with the hashes in dvc.lock, by reading every byte.

damages(Path())                       # all outputs that differ from dvc.lock
check_inputs(Path(), "train")         # in a stage that DVC runs, raises DataError if an output that it reads differs

DVC itself does not do this. It trusts a file whose size and modification time are unchanged, and it copies a file from
its cache without hashing it. A file that was damaged or manipulated in one of these ways would be used unnoticed.
"""

import hashlib
import json
import os
import re
import shlex
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from recipe.core.config import load_yaml
from recipe.core.errors import DataError
from recipe.core.paths import read_paths
from recipe.verify.rebuild import dvc_cache

DIFFERS = "differs from what dvc.lock records for"
PATH_VARIABLE = re.compile(r"\$\{paths\.(\w+)\}")


@dataclass(frozen=True)
class Damage:
    """An output whose content differs from dvc.lock. `file` is the first file that differs, if it is known."""

    stage: str
    output: str
    file: str
    what: str
    damaged_objects: tuple[Path, ...] = ()  # the files in DVC's cache that are not what their names say

    def restore(self) -> str:
        """Return the commands that restore the output."""
        delete = [self.output, *(str(path) for path in self.damaged_objects)]
        return f"rm -rf {' '.join(map(shlex.quote, delete))} && dvc repro"

    def message(self) -> str:
        """Return sentences that say what differs, and how to restore it."""
        cached = ", and its copy in DVC's cache is damaged" if self.damaged_objects else ""
        keep = "" if cached else f" If the change is intended, run `dvc commit -f {self.stage}` instead."
        return f"{self.file} {self.what} the {self.stage} stage{cached}. To restore it, run `{self.restore()}`.{keep}"


def check_inputs(folder: Path, stage: str) -> None:
    """Check the outputs that a stage reads.

    If DVC runs the stage, raises DataError if one of them differs from dvc.lock, because DVC has just brought all of
    them up to date. If a user runs the stage, dvc.lock may describe an earlier run, so only a note is printed.
    """
    note_damages(folder, _outputs_read(folder, stage), stop="DVC_STAGE" in os.environ)


def note_damages(folder: Path, only: Collection[str] | None = None, *, stop: bool = False) -> None:
    """Print a note for each output that differs from dvc.lock. If `stop` is true, raise DataError instead."""
    for damage in damages(folder, only):
        if stop:
            raise DataError(damage.message())
        print(f"note: {damage.message()}", file=sys.stderr)


def damages(folder: Path, only: Collection[str] | None = None) -> list[Damage]:
    """Return the existing outputs that differ from dvc.lock. With `only`, check only the outputs at these paths."""
    lock = folder / "dvc.lock"
    stages = load_yaml(lock).get("stages", {}) if lock.is_file() else {}
    recorded = [(name, out["path"], out["md5"]) for name, stage in stages.items() for out in stage.get("outs", [])]
    return [
        _damage(folder, name, path, md5)
        for name, path, md5 in recorded
        if (only is None or path in only) and (folder / path).exists() and md5_tree(folder / path) != md5
    ]


def _outputs_read(folder: Path, stage: str) -> set[str]:
    """Return the paths of the outputs that dvc.yaml declares as dependencies of a stage.

    If a stage depends on part of an output, such as models/base/tokenizer, the result contains the whole output.
    """
    declared = load_yaml(folder / "dvc.yaml")["stages"].get(stage, {}).get("deps", [])
    outputs = {name: path for name, path in vars(read_paths(folder)).items() if name not in ("folder", "local")}
    read = {outputs[match[1]] for text in declared if (match := PATH_VARIABLE.match(text)) and match[1] in outputs}
    return {path.relative_to(folder).as_posix() for path in read}


def _damage(folder: Path, stage: str, path: str, expected: str) -> Damage:
    """Find out which file of an output differs, and which of its copies in DVC's cache are damaged."""
    cache = Path(dvc_cache(folder))
    recorded = cached_file(cache, expected)
    objects = [recorded] if recorded else []
    file, what = path, DIFFERS
    if recorded and expected.endswith(".dir") and _is_intact(recorded):
        listed = {entry["relpath"]: entry["md5"] for entry in json.loads(recorded.read_bytes())}
        objects += [item for md5 in sorted(set(listed.values())) if (item := cached_file(cache, md5))]
        file, what = _first_difference(path, listed, md5_files(folder / path))
    return Damage(stage, path, file, what, tuple(item for item in objects if not _is_intact(item)))


def _first_difference(path: str, recorded: dict[str, str], here: dict[str, str]) -> tuple[str, str]:
    """Return the first file that differs, and how."""
    for name in sorted(recorded.keys() | here.keys()):
        if name not in here:
            return f"{path}/{name}", "is missing, but dvc.lock records it as an output of"
        if name not in recorded:
            return f"{path}/{name}", "is not one of the files that dvc.lock records as outputs of"
        if here[name] != recorded[name]:
            return f"{path}/{name}", DIFFERS
    return path, DIFFERS


def _is_intact(item: Path) -> bool:
    """Return whether a file in DVC's cache has the md5 that is its name."""
    return md5_file(item) == (item.parent.name + item.name).removesuffix(".dir")


def md5_tree(path: Path) -> str:
    """Return DVC's hash of a file or folder. A folder's hash is that of the JSON list of its files, plus `.dir`."""
    if not path.is_dir():
        return md5_file(path)
    entries = [{"md5": md5, "relpath": name} for name, md5 in sorted(md5_files(path).items())]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def md5_files(folder: Path) -> dict[str, str]:
    """Return the md5 of each file in a folder, by its relative path."""
    return {file.relative_to(folder).as_posix(): md5_file(file) for file in folder.rglob("*") if file.is_file()}


def md5_file(path: Path) -> str:
    """Return the md5 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def cached_file(cache: Path, md5: str) -> Path | None:
    """Return the file with this md5 in DVC's cache, or None if it is not there."""
    path = cache / "files" / "md5" / md5[:2] / md5[2:]
    return path if path.is_file() else None
