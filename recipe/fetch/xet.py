"""Downloads from Xet, the Hub's storage for large files. Its client, hf_xet, sends many requests in parallel.

source = find("https://huggingface.co/owner/name/resolve/COMMIT/model.safetensors", timeout)
if source:
    for chunk in stream(source, size, start, timeout, on_abort):  # the bytes of the file from `start` on, in order
        ...

The bytes arrive in order, so that an interrupted transfer can resume through Xet or over plain HTTP.
HF_HUB_DISABLE_XET=1 turns Xet off.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

MIN_BYTES = 10_000_000  # for smaller files, locating the storage takes longer than the transfer
# hf_xet's own limits add up to minutes. If the storage fails repeatedly, plain HTTP takes over.
LIMITS = {"CONNECT_TIMEOUT": "10s", "READ_TIMEOUT": "20s", "RETRY_MAX_ATTEMPTS": "3", "RETRY_BASE_DELAY": "1s"}
_LOCK = threading.Lock()
_SHARED: dict[str, Any] = {}  # the client, and the connections by the address that refreshes them


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


def _session() -> Any:
    """The client, one per process: each has its own threads, connections and buffers. The caller holds _LOCK."""
    if "session" not in _SHARED:
        for name, value in LIMITS.items():
            os.environ.setdefault(f"HF_XET_CLIENT_{name}", value)
        from hf_xet import XetSession

        _SHARED["session"] = XetSession()
    return _SHARED["session"]


def _connection(route: str, timeout: float) -> dict[str, Any]:
    """The storage's address and a token for it, from the Hub: {casUrl, accessToken, exp}, requested once per commit."""
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    known = _SHARED.get(route)
    if known is None or known["exp"] < time.time() + 60:
        response = get_session().get(route, headers=build_hf_headers(), timeout=timeout)
        hf_raise_for_status(response)
        answer = response.json()
        _SHARED[route] = {name: answer[name] for name in ("casUrl", "accessToken", "exp")}
    return _SHARED[route]


def stream(
    source: Any, size: int, start: int, timeout: float, on_abort: Callable[[Callable[[], None]], None]
) -> Iterator[bytes]:
    """The bytes from `start` on of a file of `size` bytes. A failed transfer raises XetError, or just ends early.

    `on_abort` receives a function that ends the stream from another thread, even while it waits for the network.
    """
    import httpx2
    from hf_xet import XetAuthenticationError, XetFileInfo, XetObjectNotFoundError
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import build_hf_headers

    try:
        with _LOCK:
            session, storage = _session(), _connection(source.refresh_route, timeout)
        # With an address and a token, creating the group makes no request, so the abort works from the first one on.
        group = session.new_download_stream_group(
            endpoint=storage["casUrl"], token=storage["accessToken"], token_expiry_unix_secs=storage["exp"],
            token_refresh_url=source.refresh_route, token_refresh_headers=build_hf_headers(),
        )  # fmt: skip
        on_abort(group.abort)
        yield from group.download_stream(XetFileInfo(source.file_hash, size), start=start)
    except (HfHubHTTPError, httpx2.TransportError, KeyError, TypeError, ValueError) as error:
        raise XetError(f"the Hub gave no access to the storage: {error}") from error
    except (OSError, RuntimeError, XetAuthenticationError, XetObjectNotFoundError) as error:
        raise XetError(str(error)) from error
