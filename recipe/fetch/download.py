"""Downloads a single file from a Hub commit into the local Hub cache, and verifies the file.

Large files come from Xet, the Hub's storage for large files. Small files are downloaded over plain HTTP, which is also
the fallback if Xet fails. An interrupted transfer resumes where it stopped, even in a later run. (huggingface_hub 2.4
would start over in a new process, so this module downloads the bytes itself and moves them into the cache.) A file is
accepted if its digest matches the Hub's listing of the commit. The digest is a sha256 for large files and a git blob id
for all other files. If the digest does not match, the file is downloaded once more, over plain HTTP.
"""

import functools
import hashlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

from recipe.core.errors import DataError
from recipe.core.format import first_line, format_bytes
from recipe.core.io import CHUNK_BYTES, file_lock, sha256_file
from recipe.fetch import xet
from recipe.fetch.retries import with_retries

RepoType = Literal["model", "dataset"]

TIMEOUT = 10.0  # maximum time, in seconds, to wait for a connection or for the next chunk of a response


@dataclass(frozen=True)
class RemoteFile:
    """A file of a commit, with its path, its size in bytes, and its digest (a sha256 or a git blob id)."""

    path: str
    size: int
    digest: str


@dataclass
class Transfer:
    """The state that the threads of a download share. Each thread transfers one file at a time.

    `received` is called with the number of bytes whenever bytes arrive. The number is negative if received bytes were
    discarded and must be downloaded again.
    """

    repo_type: RepoType
    name: str
    revision: str
    received: Callable[[int], None]
    use_xet: bool = True  # False once Xet has failed
    stopped: threading.Event = field(default_factory=threading.Event)
    aborts: list[Callable[[], None]] = field(default_factory=list)

    def stop(self) -> None:
        """Stop all transfers. The bytes received so far are kept."""
        self.stopped.set()
        for abort in self.aborts:
            abort()

    def on_stop(self, abort: Callable[[], None]) -> None:
        """Register a function for `stop` to call.

        If `stop` was already called, call the function immediately.
        """
        self.aborts.append(abort)
        if self.stopped.is_set():
            abort()


def git_blob_id(path: Path) -> str:
    """Return the git blob id of a file, which is the sha1 of `blob SIZE\\0` followed by the file's bytes."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _digest(path: Path, file: RemoteFile) -> str:
    return sha256_file(path) if len(file.digest) == 64 else git_blob_id(path)


def is_complete(path: Path, file: RemoteFile) -> bool:
    """Return whether the file at `path` exists and has the size and digest that the Hub lists."""
    return path.is_file() and path.stat().st_size == file.size and _digest(path, file) == file.digest


def _partial(blobs: Path, file: RemoteFile) -> Path:
    return blobs / f"{file.digest}.incomplete"


def partial_size(blobs: Path, file: RemoteFile) -> int:
    """Return the number of bytes of a file that earlier attempts downloaded."""
    path = _partial(blobs, file)
    return min(path.stat().st_size, file.size) if path.is_file() else 0


def fetch_file(transfer: Transfer, folder: Path, file: RemoteFile) -> None:
    """Download a file into the cache.

    The bytes are written to a partial file, which becomes a cache blob after verification. If the transfer is
    interrupted, the partial file is kept. Raises DataError if the file still differs from the Hub's listing after a
    second download.
    """
    blobs = folder.parent.parent / "blobs"
    partial, started = _partial(blobs, file), time.monotonic()
    with file_lock(partial.with_suffix(".lock"), wait=True):  # another process may be fetching the same file
        linked = folder / file.path
        if linked.is_symlink() and not is_complete(linked, file):
            linked.resolve().unlink(missing_ok=True)  # delete the damaged blob; _link recreates the link
            linked.unlink()
        for use_xet in (True, False):
            if is_complete(blobs / file.digest, file):
                break
            with_retries(
                functools.partial(_receive, transfer, partial, file, use_xet),
                functools.partial(partial_size, blobs, file),
                transfer.stopped,
            )
            digest = _digest(partial, file)
            if digest == file.digest:
                partial.replace(blobs / file.digest)
                break
            if use_xet:
                print(f"{file.path} has the wrong digest; downloading the file again over plain HTTP", flush=True)
            size = partial.stat().st_size
            partial.unlink()
            transfer.received(-size)
            if not use_xet:
                raise DataError(
                    f"{file.path} of {transfer.name} differed twice from the Hub's listing: expected {file.size:,} "
                    f"bytes with digest {file.digest}, found {size:,} bytes with digest {digest}. Check whether a "
                    "proxy alters downloads."
                )
        _link(linked, blobs / file.digest)
    if file.size > 10_000_000 and not sys.stderr.isatty():
        print(f"  {file.path}: {format_bytes(file.size)} in {time.monotonic() - started:.0f} s", flush=True)


def _link(link: Path, blob: Path) -> None:
    """Add a blob to the snapshot as a relative symbolic link, or as a copy if the link can't be created."""
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(os.path.relpath(blob, link.parent))
    except OSError:
        shutil.copyfile(blob, temporary)
    temporary.replace(link)


def read_end(repo_type: RepoType, name: str, revision: str, file: RemoteFile, count: int) -> bytes:
    """Return the last `count` bytes of a file on the Hub, or the whole file if it is shorter."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    start = max(file.size - count, 0)
    headers = {**build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={start}-"}

    def request() -> bytes:
        url = hf_hub_url(name, file.path, repo_type=repo_type, revision=revision)
        response = get_session().get(url, headers=headers, timeout=TIMEOUT, follow_redirects=True)
        hf_raise_for_status(response)
        return response.content if response.status_code == 206 else response.content[start:]

    return with_retries(request)


def _receive(transfer: Transfer, partial: Path, file: RemoteFile, use_xet: bool) -> None:
    """Append the missing bytes to the partial file. Raises ConnectionError if the transfer ends early."""
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(transfer.name, file.path, repo_type=transfer.repo_type, revision=transfer.revision)
    with partial.open("ab") as target:
        if target.tell() > file.size:
            target.seek(target.truncate(0))
        if target.tell() < file.size and use_xet:
            _receive_by_xet(transfer, url, target, file)
        if target.tell() < file.size:
            _receive_by_http(transfer, url, target)
        if target.tell() < file.size:
            raise ConnectionError(f"the transfer of {file.path} ended early")


def _write(transfer: Transfer, chunks: Iterable[bytes], target: BinaryIO) -> None:
    for chunk in chunks:
        target.write(chunk)
        transfer.received(len(chunk))
        if transfer.stopped.is_set():
            break
    if transfer.stopped.is_set():
        raise ConnectionError("another file of this download failed")


def _receive_by_xet(transfer: Transfer, url: str, target: BinaryIO, file: RemoteFile) -> None:
    """Append as many of the missing bytes as Xet delivers."""
    if not transfer.use_xet or file.size < xet.MIN_BYTES:
        return
    source = xet.find(url, TIMEOUT)
    if source is None:
        return
    while transfer.use_xet:
        start = target.tell()
        try:
            _write(transfer, xet.stream(source, file.size, start, TIMEOUT, transfer.on_stop), target)
            if target.tell() == file.size:
                return
            raise xet.XetError(f"{file.path} ended after {target.tell():,} of {file.size:,} bytes")
        except xet.XetError as error:
            if transfer.stopped.is_set():
                raise ConnectionError("another file of this download failed") from error
            if target.tell() > start:
                continue  # some bytes arrived, so resume after them
            if transfer.use_xet:
                print(f"Xet failed ({first_line(error, 120)}); continuing over plain HTTP", flush=True)
            transfer.use_xet = False


def _receive_by_http(transfer: Transfer, url: str, target: BinaryIO) -> None:
    """Append the missing bytes, or write the whole file again if the server does not support ranges.

    This function does not use huggingface_hub's own transfer code, which waits for as long as the Retry-After header
    demands and writes 10 MB at a time.
    """
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    start = target.tell()
    # Request no compression, so that sizes and ranges refer to the bytes of the file itself.
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT) as response:
        hf_raise_for_status(response)
        if start and response.status_code != 206:  # the server is sending the file from the beginning
            target.seek(target.truncate(0))
            transfer.received(-start)
        _write(transfer, response.iter_bytes(CHUNK_BYTES), target)
