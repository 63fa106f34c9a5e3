"""Brings files from the Hugging Face Hub into its cache, whole and checked. Only fetch, pin and plan come here.

    listing = list_repository("model", "Salesforce/xgen-7b-8k-base", commit)
    folder = download("model", "Salesforce/xgen-7b-8k-base", commit, [listing.files["config.json"]])

A download that was cut off goes on where it ended, in the next run too. (huggingface_hub 2.4 starts a file over in a
new process, so the bytes are fetched here and handed to its cache.) A file is taken when its sha256 (of large files)
or git blob id (of the others) is the one that the Hub lists for the commit; one that is not is fetched again, once.
"""

import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from recipe.caches import snapshot_folder
from recipe.errors import DataError, MachineError, ParamsError, RecipeError
from recipe.files import CHUNK_BYTES, sha256_file

Kind = Literal["model", "dataset"]
Result = TypeVar("Result")

COMMIT = re.compile(r"[0-9a-f]{40}")
TIMEOUT = 10.0  # seconds to connect, and between two pieces of an answer
TRIES = 4
LONGEST_WAIT = 20.0  # seconds between two tries, whatever the Hub asks for: a user should not sit longer before a line
PASSING = {408, 429, 500, 502, 503, 504}  # HTTP status codes of what may be over at the next try
STREAMS = 4  # files at once
QUIET_BYTES = 1_000_000  # less than this is fetched without a word
RESERVE_BYTES = 1 << 30  # of disk that a download leaves free


@dataclass(frozen=True)
class RemoteFile:
    """A file of a commit: its path, its size in bytes and what it is checked by, a sha256 or a git blob id (sha1)."""

    path: str
    size: int
    digest: str


@dataclass(frozen=True)
class Listing:
    """The files of a commit by path, and the licence that its card states."""

    files: dict[str, RemoteFile]
    license: str | None


def offline() -> bool:
    """Whether HF_HUB_OFFLINE asks to live from the cache."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def check_pinned(section: str, revision: str | None) -> str:
    """The revision, which must be a whole commit: a branch or a tag can be another commit tomorrow."""
    if revision is None or not COMMIT.fullmatch(revision):
        found = "null" if revision is None else repr(revision)
        raise ParamsError(
            f"params.yaml: {section}.revision is {found}, not a 40-digit commit, so another day could bring other "
            "files. `recipe pin` looks the commit up and writes it there."
        )
    return revision


def resolve_commit(kind: Kind, name: str, revision: str) -> str:
    """The commit that a branch, a tag or a short form stands for on the Hub today."""
    if offline():
        raise MachineError("HF_HUB_OFFLINE is set, and a commit can only be looked up on the Hub. Unset it.")
    with _explained(kind, name, revision):
        return _patiently(lambda: _api().repo_info(name, repo_type=kind, revision=revision, timeout=TIMEOUT)).sha


def list_repository(kind: Kind, name: str, revision: str) -> Listing:
    """The files of a commit, from the Hub; with HF_HUB_OFFLINE, those of it that the cache holds."""
    if offline():
        return _cached_listing(kind, name, revision)
    with _explained(kind, name, revision):
        info = _patiently(
            lambda: _api().repo_info(name, repo_type=kind, revision=revision, files_metadata=True, timeout=TIMEOUT)
        )
    files = {
        one.rfilename: RemoteFile(one.rfilename, one.size, one.lfs.sha256 if one.lfs else one.blob_id)
        for one in info.siblings
    }
    return Listing(files, _license(info.card_data))


def download(kind: Kind, name: str, revision: str, files: list[RemoteFile]) -> Path:
    """Bring files of a commit into the Hub's cache, each checked, and return the folder they are in."""
    folder = snapshot_folder(kind, name, revision)
    lacking = [file for file in files if not _is_whole(folder / file.path, file)]
    for file in lacking:
        (folder / file.path).resolve().unlink(missing_ok=True)  # the damaged blob; its link is made anew
        (folder / file.path).unlink(missing_ok=True)
    if not lacking:
        return folder
    if offline():
        raise MachineError(
            f"HF_HUB_OFFLINE is set, and {', '.join(file.path for file in lacking)} of {name} is not whole in the "
            f"cache at {folder}. Unset it once, and run this again."
        )
    blobs = folder.parent.parent / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    missing = sum(file.size - _partial_size(blobs, file) for file in lacking)
    _check_disk(blobs, missing)
    kept = sum(file.size for file in files) - missing
    if missing > QUIET_BYTES:
        there = f" ({shown_bytes(kept)} are there already)" if kept else ""
        print(f"fetching {shown_bytes(missing)} of {name}@{revision[:8]} into {blobs.parent}{there}", flush=True)
    with _explained(kind, name, revision, blobs.parent), ThreadPoolExecutor(STREAMS) as pool:
        jobs = [pool.submit(_fetch, kind, name, revision, blobs, file) for file in lacking]
        try:
            for job in jobs:
                job.result()
        finally:
            for job in jobs:
                job.cancel()
    return folder


def shown_bytes(count: float) -> str:
    """Bytes as people read them, in powers of 1000 as disks and the Hub count: `27.6 GB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def git_blob_id(path: Path) -> str:
    """The id that git gives a file: sha1 of `blob SIZE\\0` and its bytes."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi()


def _digest(path: Path, file: RemoteFile) -> str:
    return sha256_file(path) if len(file.digest) == 64 else git_blob_id(path)


def _is_whole(path: Path, file: RemoteFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size and _digest(path, file) == file.digest


def _partial(blobs: Path, file: RemoteFile) -> Path:
    return blobs / f"{file.digest}.incomplete"


def _partial_size(blobs: Path, file: RemoteFile) -> int:
    path = _partial(blobs, file)
    return min(path.stat().st_size, file.size) if path.is_file() else 0


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + RESERVE_BYTES:
        raise MachineError(
            f"{folder} has {shown_bytes(free)} free, and {shown_bytes(needed)} are still to come. Free some, or set "
            "HF_HOME to a folder on a larger disk."
        )


def _fetch(kind: Kind, name: str, revision: str, blobs: Path, file: RemoteFile) -> None:
    """One file into the cache: its bytes to a partial file that outlives this run, checked, then made a blob."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import WeakFileLock

    partial, started = _partial(blobs, file), time.monotonic()
    with WeakFileLock(partial.with_suffix(".lock")):  # another recipe may be fetching the same file: one waits
        for last in (False, True):
            if _is_whole(blobs / file.digest, file):
                break
            _receive(kind, name, revision, partial, file)
            found = _digest(partial, file)
            if found == file.digest:
                partial.replace(blobs / file.digest)
                break
            size = partial.stat().st_size
            partial.unlink()
            if last:
                raise DataError(
                    f"{file.path} of {name} came with other bytes than the Hub lists, twice: expected {file.size:,} "
                    f"bytes with {file.digest}, found {size:,} with {found}. A proxy may be changing them."
                )
    _patiently(lambda: hf_hub_download(name, file.path, repo_type=kind, revision=revision, etag_timeout=TIMEOUT))
    if file.size > 10_000_000 and not sys.stderr.isatty():
        print(f"  {file.path}: {shown_bytes(file.size)} in {time.monotonic() - started:.0f} s", flush=True)


def _receive(kind: Kind, name: str, revision: str, partial: Path, file: RemoteFile) -> None:
    """Fill the partial file up to the file's size, going on from what is there (the library writes 10 MB at a time)."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(name, file.path, repo_type=kind, revision=revision)
    # Without compression the size is the file's, and a Range is one of its bytes.
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}

    def go_on() -> None:
        with partial.open("ab") as target:  # made where it is not there
            if target.tell() > file.size:
                target.truncate(0)
                target.seek(0)
            if target.tell() < file.size or not file.size:
                http_get(
                    url, target, headers=headers, resume_size=target.tell(), expected_size=file.size,
                    displayed_filename=file.path, _nb_retries=0,
                )  # fmt: skip

    _patiently(go_on, progress=lambda: _partial_size(partial.parent, file))


def _patiently(call: Callable[[], Result], progress: Callable[[], int] = lambda: 0) -> Result:
    """The result of a call, tried again while the trouble may pass; a try that got further does not count."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    tries, before = 0, progress()
    while True:
        try:
            return call()
        except (HfHubHTTPError, httpx2.TransportError, OSError) as error:
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
            if status is not None and status not in PASSING:
                raise
            if isinstance(error, OSError) and not isinstance(error, HfHubHTTPError) and not _is_transfer(error):
                raise
            tries = 0 if progress() > before else tries + 1
            before = progress()
            if tries >= TRIES:
                raise
            time.sleep(_wait(error, tries))


def _is_transfer(error: OSError) -> bool:
    """Whether an OSError tells of a cut connection: http_get's own, for a file shorter than it should be."""
    return isinstance(error, ConnectionError) or "Consistency check failed" in str(error)


def _wait(error: Exception, tries: int) -> float:
    """Seconds until the next try: what Retry-After asks for, within reason, else 1, 2, 4."""
    response = getattr(error, "response", None)
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    return min(float(asked) if asked.isdigit() else 2.0 ** max(tries - 1, 0), LONGEST_WAIT)


@contextmanager
def _explained(kind: Kind, name: str, revision: str, cache: Path | None = None) -> Iterator[None]:
    """Turn what the Hub and the network raise into one line that says what to do."""
    import httpx2
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    section = "model" if kind == "model" else "data"
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
    token = "HF_TOKEN is set, but does not open it" if os.environ.get("HF_TOKEN") else "HF_TOKEN is not set"
    kept = f" What was received is kept in {cache}; run this again to go on." if cache else ""
    try:
        yield
    except RecipeError:
        raise
    except HFValidationError:
        raise ParamsError(f"params.yaml: {section}.id is {name!r}, which is no name on the Hub (owner/name).") from None
    except GatedRepoError:
        raise MachineError(
            f"{name} is open only to those who accepted its terms: do so on {page}, and set HF_TOKEN to a token of "
            f"that account ({token})."
        ) from None
    except RepositoryNotFoundError:
        raise ParamsError(f"params.yaml: {section}.id: {page} does not exist, or is private ({token}).") from None
    except RevisionNotFoundError:
        raise ParamsError(
            f"params.yaml: {section}.revision: {name} has no {revision}. Set it to a branch (main), and run "
            "`recipe pin`."
        ) from None
    except RemoteEntryNotFoundError as error:
        raise MachineError(
            f"{constants.ENDPOINT} lists a file of {name} that it does not have: {error.response.url}."
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = f" ({token})" if status in {401, 403} else ""
        raise MachineError(
            f"{constants.ENDPOINT} answered {status} for {name}{hint}.{kept or ' Try again later.'}"
        ) from None
    except (httpx2.TransportError, LocalEntryNotFoundError, ConnectionError) as error:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise MachineError(
            f"{constants.ENDPOINT} is out of reach: {reason}.{kept} HF_HUB_OFFLINE=1 lives from the cache."
        ) from None
    except OSError as error:
        raise MachineError(f"{name} could not be stored: {error}.{kept}") from None


def _cached_listing(kind: Kind, name: str, revision: str) -> Listing:
    """The listing of a commit as the Hub's cache holds it: a blob is named by what it is checked by."""
    folder = snapshot_folder(kind, name, revision)
    if not folder.is_dir():
        raise MachineError(
            f"HF_HUB_OFFLINE is set, and {name}@{revision[:8]} is not in the cache (looked in {folder}). Unset it "
            "once, and run this again."
        )
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest = path.resolve().name
        if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", digest):
            raise MachineError(f"{path} is no link into the Hub's cache. Remove it, and fetch again without offline.")
        where = path.relative_to(folder).as_posix()
        files[where] = RemoteFile(where, path.stat().st_size, digest)
    return Listing(files, stated_license(folder))


def stated_license(folder: Path) -> str | None:
    """The licence that the card in a snapshot states, where there is a card."""
    from huggingface_hub import RepoCard

    card = folder / "README.md"
    return _license(RepoCard.load(card, ignore_metadata_errors=True).data) if card.is_file() else None


def _license(card: Any) -> str | None:
    values = card.to_dict() if card else {}
    stated = values.get("license_name") or values.get("license")
    return ", ".join(stated) if isinstance(stated, list) else stated
