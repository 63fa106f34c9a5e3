"""Downloads from Xet, the Hub's storage for large files, with the hf_xet client.

source = find("https://huggingface.co/owner/name/resolve/COMMIT/model.safetensors", timeout)
if source:
    for chunk in stream(source, size, start, timeout, on_abort):  # the file's bytes from `start` onward, in order
        ...

hf_xet sends many requests in parallel but delivers the bytes in order. An interrupted transfer can therefore resume
through Xet or over plain HTTP. HF_HUB_DISABLE_XET=1 turns Xet off.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

MIN_BYTES = 10_000_000  # for smaller files, locating the storage takes longer than the transfer
# hf_xet's default timeouts and retries add up to minutes. With these limits, plain HTTP takes over sooner if the
# storage fails.
LIMITS = {"CONNECT_TIMEOUT": "10s", "READ_TIMEOUT": "20s", "RETRY_MAX_ATTEMPTS": "3", "RETRY_BASE_DELAY": "1s"}
_LOCK = threading.Lock()
_SHARED: dict[str, Any] = {}  # the client, under the key `session`, and each connection, under its refresh URL


class XetError(Exception):
    """The Xet storage or its client failed."""


def find(url: str, timeout: float) -> Any | None:
    """Return the Xet location of the file at a Hub URL, or None if Xet does not have the file or is turned off.

    Also return None if the request to the Hub fails, because the plain HTTP request that follows will raise the error.
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
    """Return this process's Xet client.

    Only one client is created, because each client has its own threads and buffers. The caller must hold _LOCK.
    """
    if "session" not in _SHARED:
        for name, value in LIMITS.items():
            os.environ.setdefault(f"HF_XET_CLIENT_{name}", value)
        from hf_xet import XetSession

        _SHARED["session"] = XetSession()
    return _SHARED["session"]


def _connection(route: str, timeout: float) -> dict[str, Any]:
    """Return the storage URL and an access token, as {casUrl, accessToken, exp}.

    The Hub provides both. They are requested once per commit, and again when the token is about to expire.
    """
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
    """Yield the contents of a file of `size` bytes, beginning at byte `start`.

    If the transfer fails, the stream raises XetError or ends early. `on_abort` is called with a function that can
    end the stream from another thread, even while the stream is waiting for the network.
    """
    import httpx2
    from hf_xet import XetAuthenticationError, XetFileInfo, XetObjectNotFoundError
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import build_hf_headers

    try:
        with _LOCK:
            session, storage = _session(), _connection(source.refresh_route, timeout)
        # Given a URL and a token, creating the group sends no request, so `abort` can end even the first request.
        group = session.new_download_stream_group(
            endpoint=storage["casUrl"], token=storage["accessToken"], token_expiry_unix_secs=storage["exp"],
            token_refresh_url=source.refresh_route, token_refresh_headers=build_hf_headers(),
        )  # fmt: skip
        on_abort(group.abort)
        yield from group.download_stream(XetFileInfo(source.file_hash, size), start=start)
    except (HfHubHTTPError, httpx2.TransportError, KeyError, TypeError, ValueError) as error:
        raise XetError(f"the Hub did not grant access to the storage: {error}") from error
    except (OSError, RuntimeError, XetAuthenticationError, XetObjectNotFoundError) as error:
        raise XetError(str(error)) from error
