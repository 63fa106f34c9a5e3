"""Gathers the sources of an adapter: code, dvc.lock, params, dataset, base model, lock file, image and hardware.

    gather(paths, repository, lineage, fingerprint).tags()    # the tags of a registered version

The record contains neither absolute paths nor host names.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml.error import YAMLError

from recipe.core.adapter import WEIGHTS
from recipe.core.errors import DataError
from recipe.core.git import git
from recipe.core.hub_cache import HUB
from recipe.core.io import read_json, sha256_bytes, sha256_file, sha256_listing
from recipe.core.paths import Paths
from recipe.provenance.commit import blob
from recipe.verify.environment import FILE as ENVIRONMENT
from recipe.verify.rebuild import locked_stages

NONE = "none"
HARDWARE = ("processor", "instruction sets", "cores", "GPU", "driver", "CUDA")  # the keys in environment.json


@dataclass(frozen=True)
class Source:
    """A dataset or a base model. `files` maps the name of each file to its sha256; `sha256` combines them."""

    name: str
    revision: str | None
    license: str | None
    sha256: str
    files: dict[str, str]
    hub: bool


@dataclass(frozen=True)
class Record:
    """The sources of an adapter. A string is NONE if the source does not exist, for example outside a container."""

    adapter: dict[str, str]  # the sha256 of each file
    commit: str
    clean: bool  # the commit contains dvc.lock and everything else except the outputs of this recipe
    folder: str  # the recipe folder, relative to the repository
    dvc_lock_sha256: str  # see dvc_lock_sha256()
    params_sha256: str
    data: Source
    base: Source
    tokenizer_sha256: str
    lock: str
    lock_sha256: str
    image: str
    hardware: dict[str, str]  # of the training run
    fingerprint: str

    def tags(self) -> dict[str, str]:
        """Return the record as tags of a registered version."""
        return {
            "adapter_sha256": sha256_listing(self.adapter),
            "git_commit": self.commit,
            "git_clean": "yes" if self.clean else "no",
            "recipe_folder": self.folder,
            "dvc_lock_sha256": self.dvc_lock_sha256,
            "params_sha256": self.params_sha256,
            "data_id": self.data.name,
            "data_revision": str(self.data.revision),
            "data_sha256": self.data.sha256,
            "base_id": self.base.name,
            "base_revision": str(self.base.revision),
            "base_sha256": self.base.sha256,
            "tokenizer_sha256": self.tokenizer_sha256,
            "lock": self.lock,
            "lock_sha256": self.lock_sha256,
            "image": self.image,
            "hardware": ", ".join(
                f"{value} cores" if name == "cores" else f"{name} {value}" if name in ("driver", "CUDA") else value
                for name, value in self.hardware.items()
            ) or "unknown",
            "fingerprint": self.fingerprint,
        }  # fmt: skip


def gather(paths: Paths, data_source: str, repository: Path, lineage: dict[str, str], fingerprint: str) -> Record:
    """Return the record of the adapter in a recipe folder. `lineage` contains the tags of tracking/lineage.py."""
    data, base = read_json(paths.raw / "manifest.json"), read_json(paths.base / "manifest.json")
    rows = {file["name"]: file["sha256"] for file in data["files"]}
    source = Path(data_source)
    lock = paths.folder / "dvc.lock"
    return Record(
        adapter=file_hashes(paths.adapter),
        commit=lineage.get("git_commit", NONE),
        clean="git_commit" in lineage and is_clean(paths, repository, lineage["git_commit"]),
        folder=paths.folder.resolve().relative_to(repository).as_posix(),
        dvc_lock_sha256=dvc_lock_sha256(lock.read_text(encoding="utf-8")) if lock.is_file() else NONE,
        params_sha256=sha256_file(paths.folder / "params.yaml"),
        data=Source(
            name=data["id"] or (source.name if source.is_absolute() else source.as_posix()),
            revision=data.get("revision"), license=data.get("license"), sha256=sha256_listing(rows), files=rows,
            hub=data["source"] == HUB,
        ),
        base=Source(
            name=base["id"], revision=base["revision"], license=base["license"], sha256=base["sha256"],
            files={file["name"]: file["sha256"] for file in base["files"]}, hub=base["path"] is None,
        ),
        tokenizer_sha256=base["tokenizer_sha256"],
        lock=lineage.get("lock", NONE),
        lock_sha256=lineage["lock_sha256"],
        image=lineage["image"],
        hardware=_hardware(paths),
        fingerprint=fingerprint,
    )  # fmt: skip


def file_hashes(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file in a folder, by relative path."""
    return {
        path.relative_to(folder).as_posix(): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }


def dvc_lock_sha256(text: str) -> str:
    """Return the sha256 of the stages in a dvc.lock except register, as JSON with sorted keys.

    DVC records the register stage only after the registration, so the stage can't be part of the registered sha256.
    """
    stages = {name: stage for name, stage in stages_in(text).items() if name != "register"}
    return sha256_bytes(json.dumps(stages, sort_keys=True).encode())


def stages_in(text: str) -> dict[str, Any]:
    """Return the stages in the text of a dvc.lock. Raises DataError if it is damaged."""
    try:
        return dict(locked_stages(text))
    except (YAMLError, KeyError, TypeError, ValueError):
        raise DataError("dvc.lock is damaged. Restore it with git, or run `dvc repro`.") from None


def is_clean(paths: Paths, repository: Path, commit: str) -> bool:
    """Return whether the commit contains everything that the adapter depends on.

    The repository has no changed or untracked files except the outputs of this recipe folder, and dvc.lock is that of
    the commit.
    """
    lock = paths.folder.resolve() / "dvc.lock"
    committed = blob(repository, commit, lock.relative_to(repository).as_posix())
    if committed is None or not lock.is_file():
        return False
    if dvc_lock_sha256(committed.decode("utf-8")) != dvc_lock_sha256(lock.read_text(encoding="utf-8")):
        return False
    outputs = [Path.cwd() / path for name, path in vars(paths).items() if name != "folder"]
    outputs += [lock, lock.with_name(ENVIRONMENT)]
    status = git(repository, "status", "--porcelain", "-z", "--untracked-files=all", "--no-renames")
    changed = [repository / entry[3:] for entry in status.split("\0") if entry]
    return all(any(path.is_relative_to(output) for output in outputs) for path in changed)


def _hardware(paths: Paths) -> dict[str, str]:
    """Return the hardware on which the adapter was trained, or {} if environment.json describes another adapter."""
    file = paths.folder / ENVIRONMENT
    facts: dict[str, Any] = read_json(file) if file.is_file() else {}
    if facts.get("adapter_sha256") != sha256_file(paths.adapter / WEIGHTS):
        return {}
    return {name: facts[name] for name in HARDWARE if name in facts}
