"""Formats sizes, durations, error messages and long text for display.

format_bytes(27_600_000_000)    # 27.6 GB
format_time(19_200)             # 5 h 20 min
shorten("a long sentence", 7)   # a long…
"""

import re


def format_bytes(count: float) -> str:
    """Format a number of bytes in decimal units (powers of 1000), as disk vendors and the Hub do: `27.6 GB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def format_time(seconds: float) -> str:
    """Format a number of seconds in one or two units: `42 s`, `3 min`, `5 h 20 min`, `2 d 4 h`."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24} h"


def without_credentials(text: str) -> str:
    """Return a text without the user names and passwords in its URLs: `http://user:password@host` -> `http://host`."""
    return re.sub(r"//[^/\s]*@", "//", text)


def first_line(error: BaseException, limit: int = 200) -> str:
    """Return the first non-empty line of an error's message, without credentials, cut to `limit` characters.

    If the message is empty, return the name of the error's class.
    """
    lines = str(error).strip().splitlines()
    return without_credentials(lines[0]).strip()[:limit] if lines else type(error).__name__


def shorten(text: str, width: int) -> str:
    """Return the text, shortened to `width` characters if it is longer. A shortened text ends with an ellipsis."""
    return text if len(text) <= width else text[: width - 1] + "…"
