"""Downloads from Xet, the Hub's storage for large files. Its client, hf_xet, sends many requests in parallel.

source = find("https://huggingface.co/owner/name/resolve/COMMIT/model.safetensors")
if source:
    for chunk in stream(source, size, start, abort_with):  # the bytes of the file from `start` on, in order
        ...

The bytes arrive in order, so that an interrupted transfer can resume through Xet or over plain HTTP.
HF_HUB_DISABLE_XET=1 turns Xet off.
"""

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

MIN_BYTES = 10_000_000  # locating a smaller file in the storage takes longer than its transfer
# hf_xet's default limits add up to minutes. With these, plain HTTP takes over when a request and one retry have failed.
LIMITS = {"CONNECT_TIMEOUT": "10s", "READ_TIMEOUT": "30s", "RETRY_MAX_ATTEMPTS": "1", "RETRY_BASE_DELAY": "1s"}


class XetError(Exception):
    """The Xet storage or its client failed."""


def find(url: str, timeout: float) -> Any | None:
    """Where Xet stores the file that has this URL on the Hub; None if Xet does not have it or is turned off.

    Also returns None if the Hub reports an error: the plain HTTP request that follows will raise it.
    """
    import httpx2
    from huggingface_hub import constants, get_hf_file_metadata
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_DISABLE_XET:
        return None
    try:
        return get_hf_file_metadata(url, timeout=timeout).xet_file_data
    except (HfHubHTTPError, httpx2.TransportError, OSError):
        return None


@functools.cache
def _session() -> Any:
    for name, value in LIMITS.items():
        os.environ.setdefault(f"HF_XET_CLIENT_{name}", value)
    from hf_xet import XetSession

    return XetSession()


def stream(source: Any, size: int, start: int, on_abort: Callable[[Callable[[], None]], None]) -> Iterator[bytes]:
    """The bytes from `start` on of a file of `size` bytes. A failed transfer raises XetError, or just ends early.

    `on_abort` receives a function that ends the stream from another thread, even while it waits for the network.
    """
    from hf_xet import XetAuthenticationError, XetFileInfo, XetObjectNotFoundError
    from huggingface_hub.utils import build_hf_headers

    try:
        group = _session().new_download_stream_group(
            token_refresh_url=source.refresh_route, token_refresh_headers=build_hf_headers()
        )
        on_abort(group.abort)
        yield from group.download_stream(XetFileInfo(source.file_hash, size), start=start)
    except (OSError, RuntimeError, XetAuthenticationError, XetObjectNotFoundError) as error:
        raise XetError(str(error)) from error
