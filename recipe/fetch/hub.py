"""Downloads files from the Hugging Face Hub into the local Hub cache, and verifies the files.

Only `recipe fetch`, `recipe pin` and `recipe plan` use this module.

listing = list_repository("model", "Salesforce/xgen-7b-8k-base", commit)
folder = download("model", "Salesforce/xgen-7b-8k-base", commit, [listing.files["config.json"]])
"""

import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.core.errors import DataError, MachineError, ParamsError
from recipe.core.hub_cache import snapshot_folder
from recipe.core.io import file_lock, read_json, write_json
from recipe.fetch.download import (
    TIMEOUT,
    RemoteFile,
    RepoType,
    Transfer,
    fetch_file,
    format_bytes,
    is_complete,
    partial_size,
)
from recipe.fetch.hub_errors import explained
from recipe.fetch.retries import with_retries

COMMIT = re.compile(r"[0-9a-f]{40}")
STREAMS = 4  # number of files that are downloaded at the same time
QUIET_BYTES = 1_000_000  # downloads up to this size show no progress
RESERVE_BYTES = 1 << 30  # disk space, in bytes, that a download must leave free


@dataclass(frozen=True)
class Listing:
    """The files of a commit, by path, and the license that the model card or dataset card states."""

    files: dict[str, RemoteFile]
    license: str | None


def offline() -> bool:
    """Return whether HF_HUB_OFFLINE is turned on, in which case only the cache may be used."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def check_named(section: str, name: str | None) -> str:
    """Return `name`, the name of a Hub repository. Raises ParamsError if `name` is null in params.yaml."""
    if name is None:
        raise ParamsError(
            f"params.yaml: {section}.source is `hub`, but {section}.id is null. Set {section}.id to the repository's "
            "name on the Hub (owner/name)."
        )
    return name


def check_pinned(section: str, name: str | None, revision: str | None) -> tuple[str, str]:
    """Return the name and the revision of a repository on the Hub.

    Raises ParamsError if the name is null or the revision is not a full commit hash. Branches and tags are rejected
    because they can move to a different commit.
    """
    repository = check_named(section, name)
    if revision is None or not COMMIT.fullmatch(revision):
        found = "null" if revision is None else repr(revision)
        raise ParamsError(
            f"params.yaml: {section}.revision is {found}, not a 40-digit commit, so a later fetch could get different "
            "files. Run `recipe pin` to look up the commit and write it to params.yaml."
        )
    return repository, revision


def resolve_commit(repo_type: RepoType, name: str, revision: str) -> str:
    """Return the commit to which a branch, a tag or a short hash currently refers on the Hub."""
    if offline():
        raise MachineError("HF_HUB_OFFLINE is set, but commits can only be looked up on the Hub. Unset HF_HUB_OFFLINE.")
    with explained(repo_type, name, revision):
        return with_retries(lambda: _api().repo_info(name, repo_type=repo_type, revision=revision, timeout=TIMEOUT)).sha


def list_repository(repo_type: RepoType, name: str, revision: str) -> Listing:
    """Request the listing of a commit from the Hub, save a copy on this machine, and return the listing.

    If HF_HUB_OFFLINE is set, return the saved copy instead, or raise MachineError if there is no copy.
    """
    from huggingface_hub.constants import HF_HOME

    saved = Path(HF_HOME) / "recipe" / "listings" / f"{repo_type}s--{name.replace('/', '--')}" / f"{revision}.json"
    if offline():
        if not saved.is_file():
            raise MachineError(
                f"HF_HUB_OFFLINE is set, but the file list of {name}@{revision[:8]} is not saved on this machine "
                f"(looked for {saved}). Unset HF_HUB_OFFLINE once, and run this command again."
            )
        stored = read_json(saved)
        return Listing({file["path"]: RemoteFile(**file) for file in stored["files"]}, stored["license"])
    with explained(repo_type, name, revision):
        info = with_retries(
            lambda: _api().repo_info(name, repo_type=repo_type, revision=revision, files_metadata=True, timeout=TIMEOUT)
        )
    files = {}
    for sibling in info.siblings:
        path = sibling.rfilename
        if path.startswith("/") or ".." in path.split("/"):
            raise DataError(f"{name} lists a file outside the repository: {path!r}.")
        files[path] = RemoteFile(path, sibling.size, sibling.lfs.sha256 if sibling.lfs else sibling.blob_id)
    listing = Listing(files, _license(info.card_data))
    with explained(repo_type, name, revision):
        write_json(saved, {"license": listing.license, "files": [vars(file) for file in files.values()]})
    return listing


def download(repo_type: RepoType, name: str, revision: str, files: list[RemoteFile], also: int = 0) -> Path:
    """Download files of a commit into the local Hub cache, verify each file, and return the snapshot folder.

    `also` is the number of bytes that a later conversion will write. Raises MachineError if the disk lacks space for
    the download and the conversion.
    """
    folder = snapshot_folder(repo_type, name, revision)
    incomplete = [file for file in files if not is_complete(folder / file.path, file)]
    if not incomplete:
        return folder
    if offline():
        raise MachineError(
            f"HF_HUB_OFFLINE is set, but files of {name} are missing or incomplete in the cache at {folder}: "
            f"{', '.join(file.path for file in incomplete)}. Unset HF_HUB_OFFLINE once, and run this command "
            "again."
        )
    blobs = folder.parent.parent / "blobs"
    with explained(repo_type, name, revision, blobs.parent):
        blobs.mkdir(parents=True, exist_ok=True)
        remaining = sum(file.size - partial_size(blobs, file) for file in incomplete)
        _check_disk(blobs, remaining + also)
        cached = sum(file.size for file in files) - remaining
        if remaining > QUIET_BYTES:
            note = f" ({format_bytes(cached)} already downloaded)" if cached else ""
            print(f"fetching {format_bytes(remaining)} of {name}@{revision[:8]} into {blobs.parent}{note}", flush=True)
        with _progress_bar(remaining) as received, ThreadPoolExecutor(STREAMS) as pool:
            transfer = Transfer(repo_type, name, revision, received)
            jobs = [pool.submit(fetch_file, transfer, folder, file) for file in incomplete]
            try:
                done, _ = wait(jobs, return_when=FIRST_EXCEPTION)
                failed = next((job for job in done if job.exception()), None)
            finally:
                transfer.stop()  # if one transfer failed, stop the other transfers
                for job in jobs:
                    job.cancel()
            if failed:
                failed.result()
    return folder


@contextmanager
def _progress_bar(total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar for a download of `total` bytes, and yield the function that advances the bar.

    The bar appears only on a terminal, and only if `total` exceeds QUIET_BYTES.
    """
    from tqdm import tqdm

    quiet, lock = total <= QUIET_BYTES or not sys.stderr.isatty(), threading.Lock()
    with tqdm(total=total, unit="B", unit_scale=True, leave=False, disable=quiet) as bar:

        def received(count: int) -> None:
            with lock:
                bar.update(count)

        yield received


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Wait for the lock on a folder that several processes may create, and hold the lock during the block.

    Before the block runs, temporary folders that killed processes left behind are deleted.
    """
    with file_lock(folder.with_suffix(".lock"), wait=True):
        for leftover in folder.parent.glob(f".{folder.name}.*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi()


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + RESERVE_BYTES:
        raise MachineError(
            f"{folder} has {format_bytes(free)} free, but {format_bytes(needed)} must be written and "
            f"{format_bytes(RESERVE_BYTES)} must stay free. Free up space, or set HF_HOME to a folder on a larger disk."
        )


def stated_license(folder: Path) -> str | None:
    """Return the license stated in a snapshot's card (README.md), or None if no license is stated."""
    from huggingface_hub import RepoCard
    from yaml import YAMLError

    card = folder / "README.md"
    if not card.is_file():
        return None
    try:
        return _license(RepoCard.load(card, ignore_metadata_errors=True).data)
    except (YAMLError, ValueError, TypeError):  # treat invalid metadata as if no license were stated
        return None


def _license(card: Any) -> str | None:
    values = card.to_dict() if card else {}
    stated = values.get("license_name") or values.get("license")
    names = [str(item) for item in (stated if isinstance(stated, list) else [stated]) if item is not None]
    return ", ".join(names) or None
