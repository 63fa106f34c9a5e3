"""Estimates how many rows and how much text a source contains, before the tokenizer or the rows are fetched.

    rows, size = parquet_text(read_metadata(path), {"instruction", "output"})

The footer of a Parquet file contains the number of rows and the size of each column. Therefore, only the last bytes of
a Parquet file on the Hub are downloaded. For other formats on the Hub, the amount of text is estimated from the file
size, and the number of rows is unknown. Local files are read completely.
"""

import io
import json
from pathlib import Path
from typing import Any

from recipe.core.errors import DataError
from recipe.fetch.download import RemoteFile, read_end
from recipe.fetch.hub_errors import explained
from recipe.text.file_shape import SENDER_KEYS
from recipe.text.readers import read_rows
from recipe.text.rows import Row
from recipe.text.templates import TEMPLATES

BYTES_A_TOKEN = 4.3  # in English text (Alpaca) with GPT-2's vocabulary
FOOTER_BYTES = 65_536  # number of bytes read from the end of a Parquet file; Alpaca's footer has 7,000 bytes
MAX_FOOTERS = 8  # maximum number of footers to read per dataset; the other files are assumed to be similar
MESSAGE_CHARS = 17  # a chat template writes about 4 tokens around a message, such as <|im_start|> and line breaks
LENGTH_BYTES = 4  # number of bytes that Parquet uses to store the length of each string


def text_tokens(template: str, rows: int, size: int) -> int:
    """Estimate the number of tokens in `rows` rows that contain `size` bytes of text.

    The estimate includes the text that the template adds to each row.
    """
    return int((size + rows * TEMPLATES[template].CHARS_AROUND) / BYTES_A_TOKEN)


def parquet_text(metadata: Any, columns: set[str]) -> tuple[int, int]:
    """Return the number of rows in a Parquet file, and the number of bytes of text in `columns`.

    `metadata` is a pyarrow FileMetaData object. Text that many rows share, such as the same list of tools, may be
    stored only once, and is then counted once.
    """
    size = 0
    for group in range(metadata.num_row_groups):
        chunks = metadata.row_group(group)
        for index in range(chunks.num_columns):
            chunk = chunks.column(index)
            path = chunk.path_in_schema.split(".")
            if path[0] in columns:
                size += max(chunk.total_uncompressed_size - LENGTH_BYTES * chunk.num_values, 0)
                size += MESSAGE_CHARS * chunk.num_values if path[-1] in SENDER_KEYS else 0
    return metadata.num_rows, size


def local_text(files: list[Path], columns: set[str]) -> tuple[int, int, set[str]]:
    """Return the number of rows in local files, the number of bytes of text in `columns`, and the names of all columns.

    Raises DataError if a file can't be read.
    """
    rows, size = 0, 0
    seen: set[str] = set()
    for file in files:
        for row in read_rows(file):
            rows += 1
            if isinstance(row, Row):
                seen.update(row.values)
                size += sum(_text_bytes(row.values.get(name)) for name in columns)
    return rows, size, seen


def _text_bytes(value: object) -> int:
    """Return the number of bytes in a string or in a list, including what a chat template writes around messages.

    Other objects, such as tools, are counted as JSON.
    """
    if isinstance(value, str):
        return len(value.encode("utf-8", errors="replace"))
    if isinstance(value, list):
        return sum(map(_text_bytes, value))
    if not isinstance(value, dict):
        return 0
    if SENDER_KEYS & value.keys():
        return MESSAGE_CHARS + sum(map(_text_bytes, value.values()))
    return _text_bytes(value.get("text") if value.get("type") == "text" else json.dumps(value, default=str))


def hub_text(name: str, revision: str, files: list[RemoteFile], columns: set[str]) -> tuple[int, int]:
    """Return the number of rows (0 if unknown) and the number of bytes of text in files on the Hub.

    Only the footers of Parquet files are downloaded.
    """
    total = sum(file.size for file in files)
    if not all(file.path.endswith(".parquet") for file in files):
        return 0, total
    sample = files[:MAX_FOOTERS]
    with explained("dataset", name, revision):
        counts = [parquet_text(_footer(name, revision, file), columns) for file in sample]
    share = sum(file.size for file in sample) / total
    return int(sum(rows for rows, _ in counts) / share), int(sum(size for _, size in counts) / share)


def _footer(name: str, revision: str, file: RemoteFile) -> Any:
    """Return the metadata at the end of a Parquet file on the Hub.

    The last 8 bytes of the file are the length of the metadata (4 bytes), followed by the marker `PAR1`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    end = read_end("dataset", name, revision, file, FOOTER_BYTES)
    length = int.from_bytes(end[-8:-4], "little") + 8
    if len(end) < length <= file.size:
        end = read_end("dataset", name, revision, file, length)
    try:
        # pyarrow reads the metadata from the end, so a file with only the footer is enough.
        return pq.read_metadata(io.BytesIO(b"PAR1" + end[-length:]))
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file.path} of {name} is not a readable Parquet file: {error}.") from None
