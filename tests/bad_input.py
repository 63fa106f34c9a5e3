"""Hypothesis strategies that start from a valid file and break it."""

import copy
import csv
import gzip
import io
import json

from hypothesis import strategies as st

ODD_TEXT = [
    "", " ", "\0", "nan", "\ud800", "\udcff", "\u2028", "\r", "}", "]", '"', "'", "[", "{", ",", ":", "- ", "&a",
    "*a", "!!x", "%", "\t", "\ufeff", "é", "1e999", "0x1F", "2026-01-01", "~", "<<", "? ", "|", ">", "\n", "#", "`",
    "2026-99-99", "!!int a", "!!float b", "!!timestamp c", "!!binary d", "!!bool e", "9" * 5000, "&a {x: *a}",
    "[&b [*b]]", "? {a: 1} : 2", "{[1]: 2}", "%YAML 9.9\n",
]  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.sampled_from([2**31, 2**63, 2**64, -(2**70), 10**400]),
    st.floats(), st.sampled_from(ODD_TEXT), st.text(max_size=8),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
NESTED = [("[", "]"), ('{"a":', "}"), ("{a: ", "}")]


def places(value, path=()):
    """The path of every value inside nested lists and mappings."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


@st.composite
def changed_values(draw, valid):
    """A JSON value with one to three changes: other values, other keys, missing keys, more keys."""
    document = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(document))
        if not found:
            break
        *parents, last = draw(st.sampled_from(found))
        node = document
        for key in parents:
            node = node[key]
        change = draw(st.sampled_from(["value", "value", "delete", "rename", "add"]))
        if change == "value":
            node[last] = draw(VALUES)
        elif change == "delete":
            del node[last]
        elif isinstance(node, dict) and change == "rename":
            node[draw(st.text(max_size=6) | st.sampled_from(ODD_TEXT))] = node.pop(last)
        elif isinstance(node, dict):
            node[draw(st.text(max_size=6) | st.sampled_from(ODD_TEXT))] = draw(VALUES)
    return document


@st.composite
def changed_bytes(draw, valid):
    """The bytes of a file with one to three changes: bytes cut out, replaced, inserted or repeated; nesting; noise."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, max(0, len(data) - 1)))
        stop = min(len(data), start + draw(st.sampled_from([1, 2, 7, 40, 10**6])))
        change = draw(st.sampled_from(["cut", "replace", "insert", "repeat", "nest", "noise", "gzip"]))
        if change == "cut":
            del data[start:stop]
        elif change == "repeat":
            data[start:start] = data[start:stop]
        elif change in ("replace", "insert"):
            new = draw(st.sampled_from(ODD_TEXT) | st.text(max_size=4)).encode("utf-8", "surrogatepass")
            data[start : (stop if change == "replace" else start)] = new
        elif change == "nest":
            (before, after), depth = draw(st.sampled_from(NESTED)), draw(st.sampled_from([3, 400, 1500, 6000]))
            data[start:start] = before.encode() * depth + b"1" + after.encode() * draw(st.sampled_from([0, depth]))
        elif change == "noise":
            data[start:stop] = draw(st.binary(max_size=8))
        elif draw(st.integers(0, 9)) == 0:
            data = bytearray(gzip.compress(bytes(data), mtime=0))
    return bytes(data)


def as_json(value):
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def as_jsonl(rows):
    return b"".join(as_json(row) + b"\n" for row in rows)


def as_csv(rows):
    text = io.StringIO()
    names = list(rows[0]) if rows and isinstance(rows[0], dict) else ["instruction"]
    writer = csv.writer(text)
    writer.writerow(names)
    for row in rows:
        writer.writerow([row.get(name, "") for name in names] if isinstance(row, dict) else [row])
    return text.getvalue().encode("utf-8", "surrogatepass")


def as_parquet(rows):
    """The rows in a Parquet file, or as JSON if Parquet can't store them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table, file = pa.Table.from_pylist([row for row in rows if isinstance(row, dict)]), io.BytesIO()
        pq.write_table(table, file)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return as_json(rows)
    return file.getvalue()


WRITERS = {".json": as_json, ".jsonl": as_jsonl, ".csv": as_csv, ".parquet": as_parquet}


@st.composite
def row_files(draw, valid):
    """(suffix, bytes) of a file of rows: changed rows, changed bytes, or both."""
    suffix = draw(st.sampled_from(list(WRITERS)))
    rows = draw(st.just(valid) | changed_values(valid))
    data = WRITERS[suffix](rows)
    return suffix, (data if rows is not valid and draw(st.booleans()) else draw(changed_bytes(data)))
