"""Brings files from the Hugging Face Hub into its cache, whole and checked. Only fetch, pin and plan come here.

listing = list_repository("model", "Salesforce/xgen-7b-8k-base", commit)
folder = download("model", "Salesforce/xgen-7b-8k-base", commit, [listing.files["config.json"]])
"""

import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.core.errors import DataError, MachineError, ParamsError
from recipe.core.hub_cache import snapshot_folder
from recipe.core.io import file_lock, read_json, write_json
from recipe.fetch.download import (
    TIMEOUT,
    Received,
    RemoteFile,
    RepoType,
    fetch_file,
    format_bytes,
    is_whole,
    partial_size,
    patiently,
)
from recipe.fetch.hub_errors import explained

COMMIT = re.compile(r"[0-9a-f]{40}")
STREAMS = 4  # files at once
QUIET_BYTES = 1_000_000  # less than this is fetched without a word
RESERVE_BYTES = 1 << 30  # of disk that a download leaves free


@dataclass(frozen=True)
class Listing:
    """The files of a commit by path, and the licence that its card states."""

    files: dict[str, RemoteFile]
    license: str | None


def offline() -> bool:
    """Whether HF_HUB_OFFLINE asks to live from the cache."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def check_named(section: str, name: str | None) -> str:
    """The name of what comes from the Hub, which the params must give."""
    if name is None:
        raise ParamsError(f"params.yaml: {section}.source is `hub`, and {section}.id does not say which (owner/name).")
    return name


def check_pinned(section: str, name: str | None, revision: str | None) -> tuple[str, str]:
    """The name and the revision, which must be a whole commit: a branch or a tag can be another commit tomorrow."""
    named = check_named(section, name)
    if revision is None or not COMMIT.fullmatch(revision):
        found = "null" if revision is None else repr(revision)
        raise ParamsError(
            f"params.yaml: {section}.revision is {found}, not a 40-digit commit, so another day could bring other "
            "files. `recipe pin` looks the commit up and writes it there."
        )
    return named, revision


def resolve_commit(repo_type: RepoType, name: str, revision: str) -> str:
    """The commit that a branch, a tag or a short form stands for on the Hub today."""
    if offline():
        raise MachineError("HF_HUB_OFFLINE is set, and a commit can only be looked up on the Hub. Unset it.")
    with explained(repo_type, name, revision):
        return patiently(lambda: _api().repo_info(name, repo_type=repo_type, revision=revision, timeout=TIMEOUT)).sha


def list_repository(repo_type: RepoType, name: str, revision: str) -> Listing:
    """The files of a commit, from the Hub; with HF_HUB_OFFLINE, as the Hub listed them to this machine before."""
    from huggingface_hub.constants import HF_HOME

    kept = Path(HF_HOME) / "recipe" / "listings" / f"{repo_type}s--{name.replace('/', '--')}" / f"{revision}.json"
    if offline():
        if not kept.is_file():
            raise MachineError(
                f"HF_HUB_OFFLINE is set, and {name}@{revision[:8]} was never listed on this machine (looked for "
                f"{kept}). Unset it once, and run this again."
            )
        stored = read_json(kept)
        return Listing({one["path"]: RemoteFile(**one) for one in stored["files"]}, stored["license"])
    with explained(repo_type, name, revision):
        info = patiently(
            lambda: _api().repo_info(name, repo_type=repo_type, revision=revision, files_metadata=True, timeout=TIMEOUT)
        )
    files = {}
    for one in info.siblings:
        if one.rfilename.startswith("/") or ".." in one.rfilename.split("/"):
            raise DataError(f"{name} lists a file outside of itself: {one.rfilename!r}.")
        digest = one.lfs.sha256 if one.lfs else one.blob_id
        files[one.rfilename] = RemoteFile(one.rfilename, one.size, digest)
    listing = Listing(files, _license(info.card_data))
    with explained(repo_type, name, revision):
        write_json(kept, {"license": listing.license, "files": [vars(one) for one in files.values()]})
    return listing


def download(repo_type: RepoType, name: str, revision: str, files: list[RemoteFile], also: int = 0) -> Path:
    """Bring files of a commit into the Hub's cache, each checked, and return the folder they are in.

    `also` are the bytes that will be written beside them, by a conversion: the disk must have room for both.
    """
    folder = snapshot_folder(repo_type, name, revision)
    lacking = [file for file in files if not is_whole(folder / file.path, file)]
    if not lacking:
        return folder
    if offline():
        raise MachineError(
            f"HF_HUB_OFFLINE is set, and {', '.join(file.path for file in lacking)} of {name} is not whole in the "
            f"cache at {folder}. Unset it once, and run this again."
        )
    blobs = folder.parent.parent / "blobs"
    with explained(repo_type, name, revision, blobs.parent):
        blobs.mkdir(parents=True, exist_ok=True)
        missing = sum(file.size - partial_size(blobs, file) for file in lacking)
        _check_disk(blobs, missing + also)
        kept = sum(file.size for file in files) - missing
        if missing > QUIET_BYTES:
            there = f" ({format_bytes(kept)} are there already)" if kept else ""
            print(f"fetching {format_bytes(missing)} of {name}@{revision[:8]} into {blobs.parent}{there}", flush=True)
        stop = threading.Event()
        with _bar(missing) as received, ThreadPoolExecutor(STREAMS) as pool:
            jobs = [
                pool.submit(fetch_file, repo_type, name, revision, folder, file, stop, received) for file in lacking
            ]
            try:
                for job in jobs:
                    job.result()
            finally:
                stop.set()  # the others end at their next piece, and keep what they have
                for job in jobs:
                    job.cancel()
    return folder


@contextmanager
def _bar(total: int) -> Iterator[Received]:
    """A progress bar over all files of a download, on a terminal alone; yields what is told of bytes received."""
    from tqdm import tqdm

    quiet, lock = total <= QUIET_BYTES or not sys.stderr.isatty(), threading.Lock()
    with tqdm(total=total, unit="B", unit_scale=True, leave=False, disable=quiet) as bar:

        def received(count: int) -> None:
            with lock:
                bar.update(count)

        yield received


@contextmanager
def in_turn(made: Path) -> Iterator[None]:
    """Hold a lock on what several recipes may make at once; the others wait. What a killed one left goes away."""
    with file_lock(made.with_suffix(".lock"), wait=True):
        for left in made.parent.glob(f".{made.name}.*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi()


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + RESERVE_BYTES:
        raise MachineError(
            f"{folder} has {format_bytes(free)} free, and {format_bytes(needed)} are still to come. Free some, or set "
            "HF_HOME to a folder on a larger disk."
        )


def stated_license(folder: Path) -> str | None:
    """The licence that the card in a snapshot states, where there is a card."""
    from huggingface_hub import RepoCard
    from yaml import YAMLError

    card = folder / "README.md"
    if not card.is_file():
        return None
    try:
        return _license(RepoCard.load(card, ignore_metadata_errors=True).data)
    except (YAMLError, ValueError, TypeError):  # a header that is no metadata states nothing
        return None


def _license(card: Any) -> str | None:
    values = card.to_dict() if card else {}
    stated = values.get("license_name") or values.get("license")
    names = [str(one) for one in (stated if isinstance(stated, list) else [stated]) if one is not None]
    return ", ".join(names) or None
