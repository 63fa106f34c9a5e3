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
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from recipe.caches import snapshot_folder
from recipe.errors import DataError, MachineError, ParamsError, RecipeError
from recipe.files import CHUNK_BYTES, read_json, sha256_file, write_json

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
    """The files of a commit, from the Hub; with HF_HUB_OFFLINE, as the Hub listed them to this machine before."""
    from huggingface_hub.constants import HF_HOME

    kept = Path(HF_HOME) / "recipe" / "listings" / f"{kind}s--{name.replace('/', '--')}" / f"{revision}.json"
    if offline():
        if not kept.is_file():
            raise MachineError(
                f"HF_HUB_OFFLINE is set, and {name}@{revision[:8]} was never listed on this machine (looked for "
                f"{kept}). Unset it once, and run this again."
            )
        stored = read_json(kept)
        return Listing({one["path"]: RemoteFile(**one) for one in stored["files"]}, stored["license"])
    with _explained(kind, name, revision):
        info = _patiently(
            lambda: _api().repo_info(name, repo_type=kind, revision=revision, files_metadata=True, timeout=TIMEOUT)
        )
    files = {}
    for one in info.siblings:
        if one.rfilename.startswith("/") or ".." in one.rfilename.split("/"):
            raise DataError(f"{name} lists a file outside of itself: {one.rfilename!r}.")
        digest = one.lfs.sha256 if one.lfs else one.blob_id
        files[one.rfilename] = RemoteFile(one.rfilename, one.size, digest)
    listing = Listing(files, _license(info.card_data))
    with _explained(kind, name, revision):
        write_json(kept, {"license": listing.license, "files": [vars(one) for one in files.values()]})
    return listing


def download(kind: Kind, name: str, revision: str, files: list[RemoteFile], also: int = 0) -> Path:
    """Bring files of a commit into the Hub's cache, each checked, and return the folder they are in.

    `also` are the bytes that will be written beside them, by a conversion: the disk must have room for both.
    """
    folder = snapshot_folder(kind, name, revision)
    lacking = [file for file in files if not _is_whole(folder / file.path, file)]
    if not lacking:
        return folder
    if offline():
        raise MachineError(
            f"HF_HUB_OFFLINE is set, and {', '.join(file.path for file in lacking)} of {name} is not whole in the "
            f"cache at {folder}. Unset it once, and run this again."
        )
    blobs = folder.parent.parent / "blobs"
    with _explained(kind, name, revision, blobs.parent):
        blobs.mkdir(parents=True, exist_ok=True)
        missing = sum(file.size - _partial_size(blobs, file) for file in lacking)
        _check_disk(blobs, missing + also)
        kept = sum(file.size for file in files) - missing
        if missing > QUIET_BYTES:
            there = f" ({shown_bytes(kept)} are there already)" if kept else ""
            print(f"fetching {shown_bytes(missing)} of {name}@{revision[:8]} into {blobs.parent}{there}", flush=True)
        stop = threading.Event()
        with ThreadPoolExecutor(STREAMS) as pool:
            jobs = [pool.submit(_fetch, kind, name, revision, folder, file, stop) for file in lacking]
            try:
                for job in jobs:
                    job.result()
            finally:
                stop.set()  # the others end at their next piece, and keep what they have
                for job in jobs:
                    job.cancel()
    return folder


@contextmanager
def in_turn(made: Path) -> Iterator[None]:
    """Hold a lock on what several recipes may make at once; the others wait. What a killed one left goes away."""
    from huggingface_hub.utils import WeakFileLock

    made.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(made.with_suffix(".lock")):
        for left in made.parent.glob(f".{made.name}.*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
        yield


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


def _fetch(kind: Kind, name: str, revision: str, folder: Path, file: RemoteFile, stop: threading.Event) -> None:
    """One file into the cache: its bytes to a partial file that outlives this run, checked, then made a blob."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import WeakFileLock

    blobs = folder.parent.parent / "blobs"
    partial, started = _partial(blobs, file), time.monotonic()
    with WeakFileLock(partial.with_suffix(".lock")):  # another recipe may be fetching the same file: one waits
        linked = folder / file.path
        if linked.is_symlink() and not _is_whole(linked, file):
            linked.resolve().unlink(missing_ok=True)  # the damaged blob; its link is made anew
            linked.unlink()
        for last in (False, True):
            if _is_whole(blobs / file.digest, file):
                break
            _patiently(lambda: _receive(kind, name, revision, partial, file, stop), lambda: _partial_size(blobs, file))
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
        # The blob is there: this makes its link in the snapshot.
        _patiently(lambda: hf_hub_download(name, file.path, repo_type=kind, revision=revision, etag_timeout=TIMEOUT))
    if file.size > 10_000_000 and not sys.stderr.isatty():
        print(f"  {file.path}: {shown_bytes(file.size)} in {time.monotonic() - started:.0f} s", flush=True)


def _receive(kind: Kind, name: str, revision: str, partial: Path, file: RemoteFile, stop: threading.Event) -> None:
    """Fill the partial file up to the file's size, going on from what is there. Raises where the transfer ends early.

    (huggingface_hub's own transfer sleeps as long as a Retry-After asks for, and writes 10 MB at a time.)
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status
    from tqdm import tqdm

    url = hf_hub_url(name, file.path, repo_type=kind, revision=revision)
    with partial.open("ab") as target:
        if target.tell() > file.size:
            target.truncate(0)
        start = partial.stat().st_size
        if start == file.size:
            return
        # Without compression the size is the file's, and a Range is one of its bytes.
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        bar = tqdm(
            desc=file.path[-40:], total=file.size, initial=start, unit="B", unit_scale=True, leave=False,
            disable=not sys.stderr.isatty(),
        )  # fmt: skip
        with bar, get_session().stream("GET", url, headers=headers, timeout=TIMEOUT) as response:
            hf_raise_for_status(response)
            if start and response.status_code != 206:  # the server sends it from the beginning
                target.truncate(0)
            for piece in response.iter_bytes(CHUNK_BYTES):
                target.write(piece)
                bar.update(len(piece))
                if stop.is_set():
                    raise ConnectionError("another file of this download failed")
    if partial.stat().st_size < file.size:
        raise ConnectionError(f"{file.path} ended early")


def _patiently(call: Callable[[], Result], progress: Callable[[], int] = lambda: 0) -> Result:
    """The result of a call, tried again while the trouble may pass; a try that got further starts the count anew."""
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
            if isinstance(error, OSError) and not isinstance(error, HfHubHTTPError | ConnectionError):
                raise
            tries = 0 if progress() > before else tries + 1
            before = progress()
            if tries >= TRIES:
                raise
            time.sleep(_wait(error, tries))


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
