"""Brings one file of a commit on the Hub into its cache, whole and checked.

A transfer that was cut off goes on where it ended, in the next run too. (huggingface_hub 2.4 starts a file over in a
new process, so the bytes are fetched here and handed to its cache.) A file is taken when its sha256 (of large files)
or git blob id (of the others) is the one that the Hub lists for the commit; one that is not is fetched again, once.
"""

import hashlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from recipe.core.errors import DataError
from recipe.core.format import format_bytes
from recipe.core.io import CHUNK_BYTES, file_lock, sha256_file

RepoType = Literal["model", "dataset"]
Result = TypeVar("Result")
Received = Callable[[int], None]

TIMEOUT = 10.0  # seconds to connect, and between two pieces of an answer
TRIES = 4
LONGEST_WAIT = 20.0  # seconds between two tries, whatever the Hub asks for: a user should not sit longer before a line
PASSING = {408, 429, 500, 502, 503, 504}  # HTTP status codes of what may be over at the next try


@dataclass(frozen=True)
class RemoteFile:
    """A file of a commit: its path, its size in bytes and what it is checked by, a sha256 or a git blob id (sha1)."""

    path: str
    size: int
    digest: str


def git_blob_id(path: Path) -> str:
    """The id that git gives a file: sha1 of `blob SIZE\\0` and its bytes."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _digest(path: Path, file: RemoteFile) -> str:
    return sha256_file(path) if len(file.digest) == 64 else git_blob_id(path)


def is_whole(path: Path, file: RemoteFile) -> bool:
    """Whether a file is there with the size and digest that the Hub lists."""
    return path.is_file() and path.stat().st_size == file.size and _digest(path, file) == file.digest


def _partial(blobs: Path, file: RemoteFile) -> Path:
    return blobs / f"{file.digest}.incomplete"


def partial_size(blobs: Path, file: RemoteFile) -> int:
    """The bytes of a file that earlier tries have brought."""
    path = _partial(blobs, file)
    return min(path.stat().st_size, file.size) if path.is_file() else 0


def fetch_file(
    repo_type: RepoType,
    name: str,
    revision: str,
    folder: Path,
    file: RemoteFile,
    stop: threading.Event,
    received: Received,
) -> None:
    """One file into the cache: its bytes to a partial file that outlives this run, checked, then made a blob.

    `received` is told of the bytes as they come, of a negative number where some have to come again.
    """
    blobs = folder.parent.parent / "blobs"
    partial, started = _partial(blobs, file), time.monotonic()
    with file_lock(partial.with_suffix(".lock"), wait=True):  # another recipe may be fetching the same file: one waits
        linked = folder / file.path
        if linked.is_symlink() and not is_whole(linked, file):
            linked.resolve().unlink(missing_ok=True)  # the damaged blob; its link is made anew
            linked.unlink()
        for last in (False, True):
            if is_whole(blobs / file.digest, file):
                break
            patiently(
                lambda: _receive(repo_type, name, revision, partial, file, stop, received),
                lambda: partial_size(blobs, file),
                stop,
            )
            found = _digest(partial, file)
            if found == file.digest:
                partial.replace(blobs / file.digest)
                break
            size = partial.stat().st_size
            partial.unlink()
            received(-size)
            if last:
                raise DataError(
                    f"{file.path} of {name} came with other bytes than the Hub lists, twice: expected {file.size:,} "
                    f"bytes with {file.digest}, found {size:,} with {found}. A proxy may be changing them."
                )
        _link(linked, blobs / file.digest)
    if file.size > 10_000_000 and not sys.stderr.isatty():
        print(f"  {file.path}: {format_bytes(file.size)} in {time.monotonic() - started:.0f} s", flush=True)


def _link(link: Path, blob: Path) -> None:
    """Name a blob in the snapshot as huggingface_hub's cache does: by a relative link; a copy where there are none."""
    link.parent.mkdir(parents=True, exist_ok=True)
    made = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    made.unlink(missing_ok=True)
    try:
        made.symlink_to(os.path.relpath(blob, link.parent))
    except OSError:
        shutil.copyfile(blob, made)
    made.replace(link)


def read_end(repo_type: RepoType, name: str, revision: str, file: RemoteFile, count: int) -> bytes:
    """The last `count` bytes of a file on the Hub, or all of it where it is shorter."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    start = max(file.size - count, 0)
    headers = {**build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={start}-"}

    def ask() -> bytes:
        url = hf_hub_url(name, file.path, repo_type=repo_type, revision=revision)
        response = get_session().get(url, headers=headers, timeout=TIMEOUT, follow_redirects=True)
        hf_raise_for_status(response)
        return response.content if response.status_code == 206 else response.content[start:]

    return patiently(ask)


def _receive(
    repo_type: RepoType,
    name: str,
    revision: str,
    partial: Path,
    file: RemoteFile,
    stop: threading.Event,
    received: Received,
) -> None:
    """Fill the partial file up to the file's size, going on from what is there. Raises where the transfer ends early.

    (huggingface_hub's own transfer sleeps as long as a Retry-After asks for, and writes 10 MB at a time.)
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    url = hf_hub_url(name, file.path, repo_type=repo_type, revision=revision)
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
        with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT) as response:
            hf_raise_for_status(response)
            if start and response.status_code != 206:  # the server sends it from the beginning
                target.truncate(0)
                received(-start)
            for piece in response.iter_bytes(CHUNK_BYTES):
                target.write(piece)
                received(len(piece))
                if stop.is_set():
                    raise ConnectionError("another file of this download failed")
    if partial.stat().st_size < file.size:
        raise ConnectionError(f"{file.path} ended early")


def patiently(
    call: Callable[[], Result], progress: Callable[[], int] = lambda: 0, stop: threading.Event | None = None
) -> Result:
    """The result of a call, tried again while the trouble may pass; a try that got further starts the count anew.

    `stop` ends the waiting between two tries.
    """
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    tries, before, waiting = 0, progress(), stop or threading.Event()
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
            if tries >= TRIES or waiting.wait(_wait(error, tries)):
                raise


def _wait(error: Exception, tries: int) -> float:
    """Seconds until the next try: what Retry-After asks for, within reason, else 1, 2, 4."""
    response = getattr(error, "response", None)
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    return min(float(asked) if asked.isdigit() else 2.0 ** max(tries - 1, 0), LONGEST_WAIT)
