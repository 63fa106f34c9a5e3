"""Repeats requests to the Hub after errors that may be gone at the next try.

listing = with_retries(lambda: api.repo_info(name))
"""

import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

TRIES = 4
LONGEST_WAIT = 20.0  # seconds between two tries, even if the Hub asks for more: users should not wait in silence
TEMPORARY = {408, 429, 500, 502, 503, 504}  # HTTP status codes of errors that may not recur at the next try


def with_retries(
    call: Callable[[], Result], progress: Callable[[], int] = lambda: 0, stop: threading.Event | None = None
) -> Result:
    """The result of `call`, retried after temporary errors. A try that makes progress resets the count of tries.

    Once `stop` is set, even during the wait between two tries, errors are raised instead of retried.
    """
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    tries, before, stopped = 0, progress(), stop or threading.Event()
    while True:
        try:
            return call()
        except (HfHubHTTPError, httpx2.TransportError, OSError) as error:
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
            if status is not None and status not in TEMPORARY:
                raise
            if isinstance(error, OSError) and not isinstance(error, HfHubHTTPError | ConnectionError):
                raise
            tries = 0 if progress() > before else tries + 1
            before = progress()
            if tries >= TRIES or stopped.wait(_seconds_to_wait(error, tries)):
                raise


def _seconds_to_wait(error: Exception, tries: int) -> float:
    """Seconds until the next try: Retry-After if the Hub sent it, else 1, 2, then 4; at most LONGEST_WAIT."""
    response = getattr(error, "response", None)
    retry_after = response.headers.get("Retry-After", "") if response is not None else ""
    return min(float(retry_after) if retry_after.isdigit() else 2.0 ** max(tries - 1, 0), LONGEST_WAIT)
