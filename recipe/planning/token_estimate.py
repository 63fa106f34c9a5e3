"""How many rows a source holds and how much text its template reads, before the rows are fetched or prepared.

    rows, size = parquet_text(read_metadata(path), {"instruction", "output"})

Files here are read. On the Hub, a Parquet file tells both in its footer, of which the Hub sends the last bytes alone;
of the other formats only the size is known.
"""

import io
from pathlib import Path
from typing import Any

from recipe.core.errors import DataError
from recipe.fetch.download import RemoteFile, read_end
from recipe.fetch.hub_errors import explained
from recipe.text.readers import Row, read_rows
from recipe.text.templates import TEMPLATES

BYTES_A_TOKEN = 4.3  # of English text, GPT-2's vocabulary, Alpaca
FOOTER_BYTES = 65_536  # of a Parquet file; Alpaca's footer has 7,000
MOST_FOOTERS = 8  # of a dataset in more files, the rest is taken to be like these
LENGTH_BYTES = 4  # that Parquet stores beside each string


def text_tokens(template: str, rows: int, size: int) -> int:
    """An estimate of the tokens of `size` bytes of text in `rows` rows, with what the template writes around each."""
    return int((size + rows * TEMPLATES[template].CHARS_AROUND) / BYTES_A_TOKEN)


def parquet_text(metadata: Any, columns: set[str]) -> tuple[int, int]:
    """Rows, and bytes of text in those columns, from a Parquet file's metadata (pyarrow's FileMetaData)."""
    size = 0
    for group in range(metadata.num_row_groups):
        chunks = metadata.row_group(group)
        for index in range(chunks.num_columns):
            chunk = chunks.column(index)
            if chunk.path_in_schema.split(".")[0] in columns:
                size += max(chunk.total_uncompressed_size - LENGTH_BYTES * chunk.num_values, 0)
    return metadata.num_rows, size


def local_text(files: list[Path], columns: set[str]) -> tuple[int, int, set[str]]:
    """Rows, bytes of text in those columns, and the names of all columns, of files here."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, size = 0, 0
    seen: set[str] = set()
    for file in files:
        if file.suffix == ".parquet":
            try:
                metadata = pq.read_metadata(file)
            except (pa.ArrowInvalid, OSError) as error:
                raise DataError(f"{file.name}: not a readable Parquet file: {error}.") from None
            found = parquet_text(metadata, columns)
            rows, size = rows + found[0], size + found[1]
            seen.update(metadata.schema.to_arrow_schema().names)
            continue
        for row in read_rows(file):
            rows += 1
            if isinstance(row, Row):
                seen.update(row.values)
                size += sum(_text_bytes(row.values.get(name)) for name in columns)
    return rows, size, seen


def _text_bytes(value: object) -> int:
    """The bytes of a string, or of the strings in a list of messages."""
    if isinstance(value, str):
        return len(value.encode("utf-8", errors="replace"))
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return sum(map(_text_bytes, parts))


def hub_text(name: str, revision: str, files: list[RemoteFile], columns: set[str]) -> tuple[int, int]:
    """Rows (0 where unknown) and bytes of text of a dataset's files on the Hub; asks for Parquet's footers alone."""
    total = sum(file.size for file in files)
    if not all(file.path.endswith(".parquet") for file in files):
        return 0, total
    asked = files[:MOST_FOOTERS]
    with explained("dataset", name, revision):
        found = [parquet_text(_footer(name, revision, file), columns) for file in asked]
    share = sum(file.size for file in asked) / total
    return int(sum(rows for rows, _ in found) / share), int(sum(size for _, size in found) / share)


def _footer(name: str, revision: str, file: RemoteFile) -> Any:
    """The metadata at the end of a Parquet file on the Hub: the last 8 bytes tell its length, and are `PAR1`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    end = read_end("dataset", name, revision, file, FOOTER_BYTES)
    length = int.from_bytes(end[-8:-4], "little") + 8
    if len(end) < length <= file.size:
        end = read_end("dataset", name, revision, file, length)
    try:
        # A file of nothing but its footer: pyarrow reads the metadata from the end.
        return pq.read_metadata(io.BytesIO(b"PAR1" + end[-length:]))
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file.path} of {name}: not a readable Parquet file: {error}.") from None
