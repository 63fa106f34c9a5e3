"""Recognizes files whose content is not in the expected format, and describes the content.

    describe_bytes(b"\xff\xfea\x00,\x00", ".csv")           # "is encoded in UTF-16. Convert it to UTF-8 with ..."
    describe_object({"data": [{"q": "..."}, ...]})          # "is a single object whose 'data' is a list of objects ..."

Each description completes a sentence that begins with the file's name.
"""

from typing import Any

SIGNATURES = {
    b"\x1f\x8b": "is compressed with gzip. Decompress it with gunzip",
    b"PK\x03\x04": "is a ZIP archive or an Excel file. Extract the archive, or export the Excel file as CSV in UTF-8",
    b"BZh": "is compressed with bzip2. Decompress it with bunzip2",
    b"\xfd7zXZ": "is compressed with xz. Decompress it with unxz",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd. Decompress it with unzstd",
    b"ARROW1": "is an Arrow file. Convert it to Parquet",
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself. Run `git lfs pull`",
}
BYTE_ORDER_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16",
}  # fmt: skip
SEPARATORS = (";", "\t", "|")
SENDER_KEYS = {"role", "from"}  # a list of objects with one of these keys is a chat


def describe_bytes(head: bytes, suffix: str) -> str | None:
    """Describe the content of a file that begins with `head`, or return None if the content matches the suffix."""
    if head.startswith(b"PAR1") and suffix != ".parquet":
        return "is a Parquet file. Change its extension to .parquet"
    for signature, description in SIGNATURES.items():
        if head.startswith(signature):
            return description
    if suffix == ".parquet":
        return None if head.startswith(b"PAR1") else "is not in Parquet format, although its name ends in .parquet"
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if head.startswith(mark)), None)
    if encoding is None and head.count(0) > len(head) / 4:
        # In UTF-16, one of the two bytes of an ASCII character is zero. In UTF-32, three of the four bytes are zero.
        encoding = "UTF-32" if head.count(0) > len(head) * 0.6 else "UTF-16"
    if encoding:
        return f"is encoded in {encoding}. Convert it to UTF-8 with `iconv -f {encoding} -t UTF-8`"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "is a web page, not a file of rows. Download the file itself"
    return None


def describe_lines(first: str, second: str) -> str | None:
    """Return a description of a file with these first two lines, or None if the file could be JSON Lines."""
    first = first.strip()
    if first == "[" or first.startswith(("[{", "[ {")):
        return "is a JSON list, not JSON Lines. Change its extension to .json"
    if first == "{" or (first.startswith("{") and first.endswith(",") and second.strip().startswith('"')):
        return "contains JSON objects that span several lines. Write each object on one line with `jq -c .`"
    return None


def describe_object(value: dict[str, Any]) -> str | None:
    """Return a description of a file that contains only this object, or None if the object can be a row."""
    lists = {name: items for name, items in value.items() if isinstance(items, list) and items}
    tables = {name: items for name, items in lists.items() if all(isinstance(item, dict) for item in items)}
    if any(SENDER_KEYS & items[0].keys() for items in tables.values()):
        return None
    if tables:
        name, items = max(tables.items(), key=lambda table: len(table[1]))
        return (
            f"is a single object whose {name!r} is a list of objects (length: {len(items):,}). Save this list as a "
            f"separate file with `jq '.{name}'`"
        )
    columns = [*lists.values(), *(items for items in value.values() if isinstance(items, dict) and items)]
    if len(columns) == len(value) > 1 and len(set(map(len, columns))) == 1:
        return (
            "is an object with a list of values for each column. Convert it to a list of rows, for example in pandas "
            "with to_json(orient='records')"
        )
    return None


def separator(header: list[str]) -> str | None:
    """Return the separator that a CSV header seems to use instead of a comma, or None.

    Only a header that was read as a single column is checked.
    """
    return next((mark for mark in SEPARATORS if len(header) == 1 and mark in header[0]), None)
