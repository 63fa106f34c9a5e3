import csv
import io
import json
import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe.core.errors import DataError
from recipe.text.readers import read_rows
from recipe.text.rows import NOT_UTF8, BadRow, Row, pick_columns

ROWS = [{"instruction": 'a, "b"', "output": "two\nlines"}, {"instruction": "ü 漢 🙂", "output": "x"}]
texts = st.text(st.characters(exclude_categories=["Cs"]))
row_lists = st.lists(st.fixed_dictionaries({"instruction": texts, "output": texts}), min_size=1, max_size=5)


def read(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return list(read_rows(path))


def csv_text(rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\r\n", quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("r.json", json.dumps(ROWS)),
        ("r.json", json.dumps(ROWS, indent=4, ensure_ascii=False)),
        ("r.json", "".join(json.dumps(row) + "\n" for row in ROWS)),
        ("r.jsonl", "".join(json.dumps(row) + "\n\n" for row in ROWS)),
        ("r.jsonl", "\ufeff" + "\r\n".join(json.dumps(row) for row in ROWS)),
        ("r.csv", csv_text(ROWS)),
        ("r.csv", "\ufeff" + csv_text(ROWS)),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path, name, text):
    assert [row.values for row in read(tmp_path, name, text)] == ROWS


def test_parquet_gives_the_same_rows_with_their_numbers(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "r.parquet")
    rows = list(read_rows(tmp_path / "r.parquet"))
    assert [row.values for row in rows] == ROWS
    assert [row.place for row in rows] == ["row 1", "row 2"]


@settings(max_examples=60, deadline=None)
@given(row_lists, st.sampled_from([None, 2]))
def test_any_json_list_round_trips_with_correct_places(tmp_path_factory, rows, indent):
    text = json.dumps(rows, indent=indent)
    rows_read = read(tmp_path_factory.mktemp("rows"), "r.json", text)
    assert [row.values for row in rows_read] == rows
    lines = text.splitlines()
    for number, row in enumerate(rows_read, 1):
        unit, position = row.place.split()
        if unit == "line":
            assert lines[int(position) - 1].lstrip(" [").startswith("{")
        else:
            assert int(position) == number


def test_json_rows_on_the_same_line_are_located_by_number(tmp_path):
    rows_read = read(tmp_path, "r.json", '[{"a": 1}, {"a": 2}, 3]\n')
    assert [row.place for row in rows_read] == ["row 1", "row 2", "row 3"]
    rows_read = read(tmp_path, "r.json", '[{"a": 1},\n{"a": 2}, {"a": 3},\n{"a": 4}]\n')
    assert [row.place for row in rows_read] == ["line 1", "line 2", "row 3", "line 3"]


@settings(max_examples=60, deadline=None)
@given(row_lists)
def test_any_csv_round_trips(tmp_path_factory, rows):
    rows = [{name: value.replace("\0", "") for name, value in row.items()} for row in rows]
    rows_read = read(tmp_path_factory.mktemp("rows"), "r.csv", csv_text(rows))
    assert [row.values for row in rows_read] == rows


def test_a_csv_row_is_located_by_its_first_line(tmp_path):
    rows_read = read(tmp_path, "r.csv", 'instruction,output\n"a\nb",1\nc,2\nd\n')
    assert [row.place for row in rows_read] == ["line 2", "line 4", "line 5"]
    assert rows_read[2].reason == "expected 2 values, found 1"


@pytest.mark.parametrize(
    ("name", "data", "part"),
    [
        ("r.json", '[{"a": 1},\n{"a": }]', "line 2, column 7"),
        ("r.json", '[{"a": 1}\n{"a": 2}]', "line 2: not valid JSON: expected ',' or ']'"),
        ("r.json", '[{"a": 1},\n', "line 2"),
        ("r.json", '[{"a": 1}', "the end of the file"),
        ("r.json", '"rows"', "expected a list of objects"),
        ("r.json", "", "is empty"),
        ("r.csv", "a,a\n1,2\n", "duplicate columns"),
        ("r.csv", 'a,b\n"x,2\n', "not valid CSV"),
        ("r.parquet", b"PAR1 but not really", "not a readable Parquet file"),
        ("r.txt", "x", "not from '.txt'"),
    ],
)
def test_an_unreadable_file_is_rejected_with_the_place_of_the_error(tmp_path, name, data, part):
    with pytest.raises(DataError) as raised:
        read(tmp_path, name, data)
    assert part in str(raised.value) and name in str(raised.value)


@pytest.mark.parametrize(
    ("name", "data", "part"),
    [
        ("r.json", '{"version": 1, "data": [{"a": 1}, {"a": 2}]}', "'data' is a list of objects (length: 2)"),
        ("r.json", '{\n "rows": [\n  {"a": 1}\n ]\n}', "a single object whose 'rows' is a list of objects (length: 1)"),
        ("r.jsonl", '{"data": [{"a": 1}]}', "a single object whose 'data' is a list of objects (length: 1)"),
        ("r.json", '{"a": ["x", "y"], "b": ["1", "2"]}', "an object with a list of values for each column"),
        ("r.json", '{"a": {"0": "x"}, "b": {"0": "y"}}', "an object with a list of values for each column"),
        ("r.jsonl", '[{"a": 1},\n{"a": 2}]\n', "a JSON list"),
        ("r.jsonl", '[\n{"a": 1}\n]\n', "a JSON list"),
        ("r.jsonl", '{\n "a": 1\n}\n', "JSON objects that span several lines"),
        ("r.json", '{\n "a": 1\n}\n{\n "a": 1\n}\n', "JSON objects that span several lines"),
        ("r.csv", "a;b\n1;2\n", "separated by ';'"),
        ("r.csv", "a\tb\n1\t2\n", r"separated by '\t'"),
        ("r.csv", "a|b\n1|2\n", "separated by '|'"),
        ("r.csv", "a,b\n1,2\n".encode("utf-16"), "UTF-16"),
        ("r.csv", "a,b\n1,2\n".encode("utf-16-le"), "UTF-16"),
        ("r.json", '[{"a": 1}]'.encode("utf-16-be"), "UTF-16"),
        ("r.jsonl", '{"a": 1}'.encode("utf-32"), "UTF-32"),
        ("r.jsonl", b"\x1f\x8b\x08\x00abc", "gzip"),
        ("r.csv", b"PK\x03\x04abc", "ZIP archive or an Excel file"),
        ("r.json", b"PAR1abc", "Parquet"),
        ("r.csv", b"PAR1abc", "Parquet"),
        ("r.jsonl", "<!DOCTYPE html>\n<html>", "a web page"),
        ("r.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS pointer"),
        ("r.parquet", '{"a": 1}', "not in Parquet format"),
        ("r.json", "a,b\n1,2\n", "expected a list of objects"),
    ],
)
def test_a_file_of_another_shape_is_described_in_one_line(tmp_path, name, data, part):
    with pytest.raises(DataError) as raised:
        read(tmp_path, name, data)
    assert part in str(raised.value) and name in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "Hi"}], "tools": [{"name": "f"}]},
        {"conversations": [{"from": "human", "value": "Hi"}]},
        {"instruction": "a", "output": "b", "history": [["a", "b"]]},
        {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Hi"}]},
    ],
)
def test_a_file_with_a_single_row_is_not_taken_for_another_shape(tmp_path, row):
    for name in ("r.json", "r.jsonl"):
        assert [r.values for r in read(tmp_path, name, json.dumps(row))] == [row]


def test_trailing_empty_columns_of_a_csv_are_left_out(tmp_path):
    for header in ("a,b,,", "a,b"):
        rows_read = read(tmp_path, "r.csv", f"{header}\n1,2,,\n3,4,,\n5,6,,x\n")
        assert [row.values for row in rows_read[:2]] == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
        assert rows_read[2].reason == "value 4 ('x') is in a column without a name"


@pytest.mark.parametrize("text", ["3", "null", '"a"', "[]", "[1, 2]"])
def test_a_jsonl_file_with_a_single_value_that_is_not_an_object_has_a_bad_row(tmp_path, text):
    [bad] = read(tmp_path, "r.jsonl", text)
    assert isinstance(bad, BadRow) and "not an object" in bad.reason


def test_an_invalid_line_is_a_bad_row_and_the_other_lines_are_read(tmp_path):
    first, invalid, number, last = read(tmp_path, "r.jsonl", '{"a": "x"}\n{"a": \n3\n{"a": "y"}\n')
    assert (first.values, last.values) == ({"a": "x"}, {"a": "y"})
    assert (invalid.place, number.reason) == ("line 2", "the row is a number, not an object")
    assert "not valid JSON" in invalid.reason


REQUIRED, OPTIONAL = {"instruction": "q", "output": "a"}, {"input": "ctx"}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"q": "x"}, "the column 'a' is missing. Columns found: 'q'"),
        ({"q": "x", "a": None}, "'a' is null, not a string"),
        ({"q": "x", "a": 3}, "'a' is a number, not a string"),
        ({"q": ["x"], "a": "y"}, "'q' is a list, not a string"),
        ({"q": "x", "a": " \n"}, "'a' is empty"),
        ({"q": "x", "a": "y", "ctx": True}, "'ctx' is a boolean, not a string"),
        ({"q": "x\udc80", "a": "y"}, f"'q' {NOT_UTF8}"),
        ({"q": "x", "a": float("nan")}, "'a' is NaN (a missing value), not a string"),
        ({"q": "x", "a": "nan"}, "'a' contains only 'nan', which represents a missing value"),
        ({"q": "x", "a": "y", "ctx": 3.0}, "'ctx' is a number, not a string"),
    ],
)
def test_a_row_that_the_template_cannot_use_is_rejected_with_the_reason(values, reason):
    bad = pick_columns(Row(values, "r.json", "line 7"), REQUIRED, OPTIONAL)
    assert isinstance(bad, BadRow)
    assert (bad.file, bad.place, bad.reason) == ("r.json", "line 7", reason)


@pytest.mark.parametrize("name", ["r.jsonl", "r.json", "r.csv"])
def test_bytes_that_are_not_utf8_make_a_bad_row_with_its_line(tmp_path, name):
    data = {
        "r.jsonl": b'{"q": "ok", "a": "ok"}\n{"q": "caf\xe9", "a": "ok"}\n',
        "r.json": b'[{"q": "ok", "a": "ok"},\n{"q": "caf\xe9", "a": "ok"}]',
        "r.csv": b"q,a\ncaf\xe9,ok\n",
    }[name]
    bad = [pick_columns(row, REQUIRED, OPTIONAL) for row in read(tmp_path, name, data)][-1]
    assert (bad.place, bad.reason) == ("line 2", f"'q' {NOT_UTF8}")
    bad.content.encode()


def test_optional_columns_may_be_missing_null_nan_or_blank():
    for missing in ({}, {"ctx": None}, {"ctx": ""}, {"ctx": " \n\t"}, {"ctx": float("nan")}, {"ctx": "nan"}):
        values = {"q": "x", "a": "y", **missing}
        picked = pick_columns(Row(values, "f", "line 1"), REQUIRED, OPTIONAL)
        assert picked == {"instruction": "x", "output": "y", "input": ""}


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}"], ids=["nested", "digits"])
def test_json_that_python_cannot_represent_is_a_bad_row_or_an_error(tmp_path, text):
    [bad] = read(tmp_path, "r.jsonl", text + "\n")
    assert isinstance(bad, BadRow) and "JSON" in bad.reason
    with pytest.raises(DataError, match="JSON"):
        read(tmp_path, "r.json", f"[{text}")


def test_a_csv_without_a_header_is_rejected(tmp_path):
    with pytest.raises(DataError, match="has no header"):
        read(tmp_path, "r.csv", b"\xef\xbb\xbf")


@pytest.mark.parametrize("depth", [600, 1000, 1020, 3000])
def test_a_row_nested_too_deeply_to_serialize_is_a_bad_row(tmp_path, depth):
    """orjson reads deeper nesting than Python's json can write."""
    (tmp_path / "rows.jsonl").write_text('{"instruction": ' + "[" * depth + "]" * depth + ', "output": "x"}\n')
    [row] = read_rows(tmp_path / "rows.jsonl")
    if not isinstance(row, BadRow):
        row = pick_columns(row, {"instruction": "instruction", "output": "output"}, {})
    assert isinstance(row, BadRow) and ("not readable JSON" in row.reason or "a list" in row.reason)


def test_the_command_for_other_separators_gives_the_same_rows(tmp_path):
    rows = [["question", "answer"], ["Name; it", 'the "word", ok'], ["two\nlines", "é"]]
    with (tmp_path / "semi.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=";").writerows(rows)
    with pytest.raises(DataError) as raised:
        list(read_rows(tmp_path / "semi.csv"))
    [command] = re.findall("`python -c (.*)`", str(raised.value))
    command = command.replace("FILE", "semi.csv").replace("NEW", "comma.csv")
    subprocess.run(f"{sys.executable} -c {command}", shell=True, check=True, cwd=tmp_path)
    read = [list(row.values.values()) for row in read_rows(tmp_path / "comma.csv")]
    assert read == rows[1:]
