"""Retries requests to the Hub after errors that may be temporary.

listing = with_retries(lambda: api.repo_info(name))
"""

import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

TRIES = 4
# The maximum wait between two tries, in seconds. This limit applies even if the Hub asks for a longer wait, because
# nothing is printed during the wait.
LONGEST_WAIT = 20.0
TEMPORARY = {408, 429, 500, 502, 503, 504}  # HTTP status codes of errors that may be temporary


def with_retries(
    call: Callable[[], Result], progress: Callable[[], int] = lambda: 0, stop: threading.Event | None = None
) -> Result:
    """Return the result of `call`, which is retried after temporary errors.

    If a failed try increased the value of `progress`, the count of tries is reset to zero. Once `stop` is set, even
    during the wait between two tries, the error is raised and `call` is not retried.
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
    """Return the number of seconds to wait before the next try, at most LONGEST_WAIT.

    If the Hub sent a Retry-After header with a number of seconds, that number is used. Otherwise, the wait is 1 second
    before the first retry, 2 seconds before the second, and 4 seconds before the third.
    """
    response = getattr(error, "response", None)
    retry_after = response.headers.get("Retry-After", "") if response is not None else ""
    return min(float(retry_after) if retry_after.isdigit() else 2.0 ** max(tries - 1, 0), LONGEST_WAIT)
