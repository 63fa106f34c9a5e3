"""Recognizes files that do not have the shape of their format, and describes what they look like.

    describe_bytes(b"\xff\xfea\x00,\x00", ".csv")           # "is encoded in UTF-16; convert it to UTF-8: ..."
    describe_object({"data": [{"q": "..."}, ...]})          # "is an object whose 'data' is a list of 2 objects; ..."

Each description completes a sentence that begins with the file's name.
"""

from typing import Any

SIGNATURES = {
    b"\x1f\x8b": "is compressed with gzip; decompress it: gunzip",
    b"PK\x03\x04": "is a ZIP archive or an Excel file; extract it, or export it as CSV in UTF-8",
    b"BZh": "is compressed with bzip2; decompress it: bunzip2",
    b"\xfd7zXZ": "is compressed with xz; decompress it: unxz",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; decompress it: unzstd",
    b"ARROW1": "is an Arrow file; convert it to Parquet",
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself; run: git lfs pull",
}
BYTE_ORDER_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16",
}  # fmt: skip
SEPARATORS = (";", "\t", "|")
SENDER_KEYS = {"role", "from"}  # a list of objects with one of these keys is a chat


def describe_bytes(head: bytes, suffix: str) -> str | None:
    """What a file that begins with `head` looks like, if that contradicts its suffix; None if it fits."""
    if head.startswith(b"PAR1") and suffix != ".parquet":
        return "is a Parquet file; rename it to .parquet"
    for signature, description in SIGNATURES.items():
        if head.startswith(signature):
            return description
    if suffix == ".parquet":
        return None if head.startswith(b"PAR1") else "is not Parquet, although its name says so"
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if head.startswith(mark)), None)
    if encoding is None and head.count(0) > len(head) / 4:
        # In UTF-16, one of the two bytes of an ASCII character is zero; in UTF-32, three of the four.
        encoding = "UTF-32" if head.count(0) > len(head) * 0.6 else "UTF-16"
    if encoding:
        return f"is encoded in {encoding}; convert it to UTF-8: iconv -f {encoding} -t UTF-8"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "is a web page, not a file of rows; download the file itself"
    return None


def describe_lines(first: str, second: str) -> str | None:
    """What a JSON Lines file looks like whose first two lines are these; None if it may be JSON Lines."""
    first = first.strip()
    if first == "[" or first.startswith(("[{", "[ {")):
        return "is a JSON list, not JSON Lines; rename it to .json"
    if first == "{" or (first.startswith("{") and first.endswith(",") and second.strip().startswith('"')):
        return "contains JSON objects that span several lines; write each object in one line: jq -c ."
    return None


def describe_object(value: dict[str, Any]) -> str | None:
    """What a file looks like whose only value is this object; None if the object may be a row."""
    lists = {name: items for name, items in value.items() if isinstance(items, list) and items}
    tables = {name: items for name, items in lists.items() if all(isinstance(item, dict) for item in items)}
    if any(SENDER_KEYS & items[0].keys() for items in tables.values()):
        return None
    if tables:
        name, items = max(tables.items(), key=lambda table: len(table[1]))
        return (
            f"is an object whose {name!r} is a list of {len(items):,} objects; save that list as a file of its own: "
            f"jq '.{name}'"
        )
    columns = [*lists.values(), *(items for items in value.values() if isinstance(items, dict) and items)]
    if len(columns) == len(value) > 1 and len(set(map(len, columns))) == 1:
        return (
            "is an object with a list of values for each column; it must be a list of rows, as pandas writes it with "
            "to_json(orient='records')"
        )
    return None


def separator(header: list[str]) -> str | None:
    """The separator that the header of a CSV file seems to use if it was read as a single column; otherwise None."""
    return next((mark for mark in SEPARATORS if len(header) == 1 and mark in header[0]), None)
