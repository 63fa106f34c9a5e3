import json
import shutil

import pytest
from conftest import ROOT, alpaca, data_params, paths_in, write_jsonl

from recipe.core.errors import DataError, ParamsError, RecipeError
from recipe.core.io import sha256_file, sha256_tree
from recipe.fetch.params import ModelParams
from recipe.fetch.stage import fetch_data, fetch_model
from recipe.tokens.tokenizer import load_tokenizer


def data(source="rows", **changes):
    return data_params(source, **changes)


@pytest.fixture
def rows(tmp_path):
    write_jsonl(tmp_path / "rows" / "train-0001.jsonl", [alpaca("b", "2")])
    write_jsonl(tmp_path / "rows" / "train-0000.jsonl", [alpaca("a", "1")])
    write_jsonl(tmp_path / "rows" / "test.jsonl", [alpaca("c", "3")])
    (tmp_path / "rows" / "README.md").write_text("about")
    return tmp_path


def test_files_of_a_folder_are_copied_by_split_and_listed_in_a_manifest(rows):
    fetch_data(data(validation_split="test"), paths_in(rows, folder=rows))
    manifest = json.loads((rows / "raw" / "manifest.json").read_text())
    assert [(file["name"], file["split"]) for file in manifest["files"]] == [
        ("train-0000.jsonl", "train"),
        ("train-0001.jsonl", "train"),
        ("test.jsonl", "validation"),
    ]
    for file in manifest["files"]:
        copy = rows / "raw" / file["name"]
        assert (file["bytes"], file["sha256"]) == (copy.stat().st_size, sha256_file(copy))
        assert copy.read_bytes() == (rows / "rows" / file["name"]).read_bytes()
    assert str(rows) not in (rows / "raw" / "manifest.json").read_text()


def test_a_single_file_is_the_train_split(rows):
    fetch_data(data("rows/test.jsonl"), paths_in(rows, folder=rows))
    assert sorted(file.name for file in (rows / "raw").iterdir()) == ["manifest.json", "test.jsonl"]
    with pytest.raises(ParamsError, match=r"data.validation_split is 'test', but data.source is a single file"):
        fetch_data(data("rows/test.jsonl", validation_split="test"), paths_in(rows, folder=rows))


@pytest.mark.parametrize(
    ("params", "error", "part"),
    [
        (data("nowhere"), DataError, "nowhere does not exist"),
        (data(train_split="training"), DataError, "has no split 'training': it contains test.jsonl, train-0000.jsonl"),
        (data(validation_split="train"), DataError, "both contain train-0000.jsonl, train-0001.jsonl"),
        (data("rows/README.md"), DataError, "ends in '.md'"),
        (data("hub"), ParamsError, "data.source is `hub`, but data.id is null"),
        (data("hub").model_copy(update={"id": "a/b"}), ParamsError, "data.revision is null, not a 40-digit commit"),
        (data(train_split="manifest"), DataError, "has no split 'manifest'"),
    ],
)
def test_an_invalid_source_is_rejected(rows, params, error, part):
    with pytest.raises(error) as raised:
        fetch_data(params, paths_in(rows, folder=rows))
    assert part in str(raised.value)
    assert not (rows / "raw").exists()


def test_files_are_checked_against_data_sha256(rows):
    good = sha256_file(rows / "rows" / "test.jsonl")
    fetch_data(data("rows/test.jsonl", sha256=good), paths_in(rows, folder=rows))
    both = {name: sha256_file(rows / "rows" / name) for name in ("train-0000.jsonl", "train-0001.jsonl")}
    fetch_data(data(sha256=both), paths_in(rows, folder=rows))
    before = sha256_tree(rows / "raw")
    for params, part in (
        (data("rows/test.jsonl", sha256="0" * 64), f"expected {'0' * 64}, found {good}"),
        (data(sha256={**both, "x.jsonl": good}), "data.sha256 names x.jsonl"),
        (data(sha256={}), "data.sha256 has no value for train-0000.jsonl, train-0001.jsonl"),
        (data(sha256=good), "a single value, but the source has 2 files"),
    ):
        with pytest.raises((DataError, ParamsError), match=part):
            fetch_data(params, paths_in(rows, folder=rows))
    assert sha256_tree(rows / "raw") == before


def test_a_file_named_like_the_manifest_is_rejected(rows):
    write_jsonl(rows / "rows" / "manifest.json", [alpaca("a", "1")])
    with pytest.raises(DataError, match="Rename the file"):
        fetch_data(data(train_split="manifest"), paths_in(rows, folder=rows))


def model(source, **changes):
    return ModelParams(**{"source": str(source), "id": "tiny", "revision": None, "trust_remote_code": False, **changes})


def test_fetch_model_records_sha256_and_is_deterministic(tiny_base, tmp_path):
    shutil.copytree(tiny_base, tmp_path / "base model")
    fetch_model(model("base model"), paths_in(tmp_path, folder=tmp_path, base=tmp_path / "fetched"))
    manifest = json.loads((tmp_path / "fetched" / "manifest.json").read_text())
    assert manifest["path"] == "base model" and manifest["architecture"] == "LlamaForCausalLM"
    assert {file["name"] for file in manifest["files"]} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }
    for file in manifest["files"]:
        assert file["sha256"] == sha256_file(tiny_base / file["name"])
    first = sha256_tree(tmp_path / "fetched")
    fetch_model(model("base model"), paths_in(tmp_path, folder=tmp_path, base=tmp_path / "fetched"))
    assert sha256_tree(tmp_path / "fetched") == first


def test_a_missing_padding_token_is_added_and_differs_from_the_end_token(tiny_base, fetched_base):
    before, after = load_tokenizer(tiny_base), load_tokenizer(fetched_base / "tokenizer")
    assert before.pad_token_id is None
    assert (
        after.pad_token == "<|pad|>" and after.pad_token_id == len(before) and after.pad_token_id != after.eos_token_id
    )


def test_an_existing_padding_token_is_kept():
    tokenizer = load_tokenizer(ROOT / "demo" / "base")
    assert tokenizer.pad_token == "<|pad|>" and len(tokenizer) == 1024


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "it has no model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs"), "not a safetensors file"),
        (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "does not contain a tokenizer"),
        (lambda folder: (folder / "config.json").write_text('{"auto_map": {}}'), "needs remote code"),
    ],
)
def test_a_folder_without_a_valid_model_is_rejected(tiny_base, tmp_path, change, part):
    shutil.copytree(tiny_base, tmp_path / "base")
    change(tmp_path / "base")
    with pytest.raises(RecipeError, match=part):
        fetch_model(model("base"), paths_in(tmp_path, folder=tmp_path, base=tmp_path / "fetched"))
    assert not (tmp_path / "fetched").exists()


@pytest.mark.parametrize("content", ["{}", "[]", "nonsense", '{"version": "1.0", "added_tokens": [], "model": {}}'])
def test_an_invalid_tokenizer_file_gives_a_one_line_error(tiny_base, tmp_path, content):
    shutil.copytree(tiny_base, tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match=r"does not contain a tokenizer that transformers can read: [A-Z]"):
        load_tokenizer(tmp_path / "base")
