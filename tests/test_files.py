import json
import pickle
import subprocess
import sys

import pytest
from conftest import ROOT

from recipe.core.errors import DataError, MachineError
from recipe.core.format import first_line, shorten
from recipe.core.io import (
    file_lock,
    new_folder,
    read_json,
    read_json_lines,
    sha256_bytes,
    sha256_file,
    sha256_listing,
    sha256_tree,
    write_json,
    write_text,
)  # fmt: skip


def test_sha256_of_bytes_file_and_tree(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    assert sha256_bytes(b"abc") == sha256_file(tmp_path / "a") == known
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "b").write_bytes(b"")
    first = sha256_tree(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "x.pyc").write_bytes(b"x")
    assert sha256_tree(tmp_path) == first
    (tmp_path / "d" / "b").rename(tmp_path / "d" / "c")
    assert sha256_tree(tmp_path) != first
    assert sha256_listing({"x": "1", "y": "2"}) == sha256_listing({"y": "2", "x": "1"})


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "sub" / "a.json"
    write_json(path, {"b": 1, "a": "ü"})
    assert path.read_text() == '{\n  "b": 1,\n  "a": "ü"\n}\n'
    with pytest.raises(ValueError, match="Out of range"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\udc80")
    assert json.loads(path.read_text()) == {"b": 1, "a": "ü"}
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]


def test_a_new_folder_is_complete_or_absent(tmp_path):
    target = tmp_path / "target"
    with new_folder(target) as folder:
        (folder / "a").write_text("1")
    with pytest.raises(RuntimeError), new_folder(target) as folder:
        (folder / "b").write_text("2")
        raise RuntimeError
    assert [file.name for file in target.iterdir()] == ["a"]
    with new_folder(target) as folder:
        (folder / "b").write_text("2")
    assert [file.name for file in target.iterdir()] == ["b"]
    assert [file.name for file in tmp_path.iterdir()] == ["target"]


def test_the_error_for_a_missing_output_recommends_dvc_repro(tmp_path):
    with pytest.raises(MachineError, match="dvc repro"):
        read_json(tmp_path / "meta.json")


def test_file_lock_excludes_other_processes_and_is_released(tmp_path):
    with (
        file_lock(tmp_path / "lock", "a stage"),
        pytest.raises(MachineError, match="process"),
        file_lock(tmp_path / "lock", "a stage"),
    ):
        pass
    with file_lock(tmp_path / "lock", "a stage"):
        code = (
            "import sys; from pathlib import Path; from recipe.core.io import file_lock\n"
            "from recipe.core.errors import MachineError\n"
            "try:\n  with file_lock(Path(sys.argv[1]), 'a stage'): pass\n"
            "except MachineError as e: print(e)\n"
        )
        process = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "lock"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    assert "a stage is already running here (process" in process.stdout
    with file_lock(tmp_path / "lock", "a stage"):
        pass


def test_first_line_of_an_error_is_stripped_cut_and_never_empty():
    assert first_line(ValueError(" \n two words \nmore")) == "two words"
    assert first_line(ValueError("x" * 300)) == "x" * 200 and first_line(ValueError("abc"), limit=2) == "ab"
    assert first_line(KeyError()) == first_line(KeyError(), limit=3) == "KeyError"


def test_shortened_text_ends_in_an_ellipsis_within_the_width():
    assert (shorten("abc", 3), shorten("abcd", 3)) == ("abc", "ab…")


def test_a_missing_key_of_an_output_names_the_file_and_the_key_at_any_depth(tmp_path):
    path = tmp_path / "meta.json"
    write_text(path, '{"rows": [{"train": {"count": 1}}]}\n')
    value = read_json(path)
    assert value == {"rows": [{"train": {"count": 1}}]} == pickle.loads(pickle.dumps(value))
    assert value.get("tokens") is None and "tokens" not in value
    inner, copied = value["rows"][0], pickle.loads(pickle.dumps(value))
    for found in (value, inner, inner["train"], copied, read_json_lines(path)[0]):
        with pytest.raises(DataError, match=r"meta.json has no key 'tokens', probably because a different version"):
            found["tokens"]


@pytest.mark.parametrize("read", [read_json, read_json_lines])
def test_an_output_that_is_missing_or_not_json_is_reported(tmp_path, read):
    with pytest.raises(MachineError, match=r"rows.json is missing, but an earlier stage should have created it"):
        read(tmp_path / "rows.json")
    (tmp_path / "rows.json").write_text('{"a": 1')
    with pytest.raises(DataError, match=r"rows.json is not valid JSON"):
        read(tmp_path / "rows.json")
