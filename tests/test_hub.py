"""Fetching with the command line, from a Hub on loopback that fails on demand."""

import hashlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import RECIPE, ROOT, edit, toy_rows
from hub_server import FakeHub, blob_id

from recipe.core.io import sha256_tree
from recipe.tokens.tokenizer import load_tokenizer

MODEL, DATA = "owner/tiny", "owner/rows"


@pytest.fixture
def hub():
    with FakeHub() as server:
        yield server


@pytest.fixture(scope="session")
def model_files(tiny_base):
    return {file.name: file.read_bytes() for file in sorted(tiny_base.iterdir())} | {
        "README.md": b"---\nlicense: apache-2.0\n---\n# tiny\n",
        "pytorch_model.bin": b"not needed",
        "onnx/model.onnx": b"not needed",
    }


@pytest.fixture(scope="session")
def parquet(tmp_path_factory):
    """Rows in the layout of Alpaca: four columns, including `text`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path_factory.mktemp("parquet") / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([{**row, "text": "x"} for row in toy_rows(60)]), path)
    return path.read_bytes()


@pytest.fixture
def folder(tmp_path, hub):
    """A recipe folder whose rows and base model come from the Hub, with a separate cache."""
    folder = tmp_path / "recipe-folder"
    folder.mkdir()
    shutil.copy(ROOT / "dvc.yaml", folder / "dvc.yaml")
    for name in ("recipe", "requirements"):
        (folder / name).symlink_to(ROOT / name)
    text = (ROOT / "params.yaml").read_text()
    text = text.replace("source: demo/rows ", "source: hub ").replace("source: demo/base ", "source: hub ")
    text = text.replace("id: null  ", f"id: {DATA} ").replace("id: demo-base  ", f"id: {MODEL} ")
    (folder / "params.yaml").write_text(text.replace("validation_split: validation ", "validation_split: null "))
    return folder


def environment(folder, hub, **variables):
    return {**hub.environment(folder.parent / "hf"), **variables}


def recipe(folder, hub, *arguments, code=0, **variables):
    process = subprocess.run(
        [*RECIPE, *arguments], cwd=folder, env=environment(folder, hub, **variables),
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    assert code is None or process.returncode == code, process.stdout
    assert "Traceback" not in process.stdout
    return process.stdout


def pinned(folder, section, commit):
    head, _, tail = (folder / "params.yaml").read_text().partition(f"{section}:\n")
    (folder / "params.yaml").write_text(
        f"{head}{section}:\n" + tail.replace("revision: null", f"revision: {commit}", 1)
    )


@pytest.fixture
def with_model(hub, folder, model_files):
    pinned(folder, "model", hub.add("model", MODEL, model_files))
    return folder


@pytest.fixture
def with_large_model(hub, folder, model_files, tmp_path):
    """A model of 40 MB: received data is written in chunks of 1 MB."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=80_000, hidden_size=62, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "large")
    names = ("config.json", "model.safetensors")
    model_files = {**model_files, **{name: (tmp_path / "large" / name).read_bytes() for name in names}}
    pinned(folder, "model", hub.add("model", MODEL, model_files))
    return folder


def large(hub):
    return hub.repositories["model", MODEL].files["model.safetensors"]


@pytest.fixture
def with_data(hub, folder, parquet):
    files = {"data/train-00000-of-00001-a09b74b3ef9c3b56.parquet": parquet, ".gitattributes": b"x"}
    files["README.md"] = b"---\nlicense: cc-by-nc-4.0\n---\n# rows\n"
    pinned(folder, "data", hub.add("dataset", DATA, files))
    return folder


def test_pin_writes_a_commit_that_looks_like_a_number_as_a_string(folder, hub, model_files):
    from recipe.core.config import load_yaml

    for commit in ("1234567890" * 4, "12345e6789" + "0" * 30):
        hub.add("model", MODEL, model_files, commit=commit)
        hub.add("dataset", DATA, {"train.jsonl": b"{}"})
        recipe(folder, hub, "pin", "--update")
        assert load_yaml(folder / "params.yaml")["model"]["revision"] == commit


def manifest(folder):
    return json.loads((folder / "models/base/manifest.json").read_text())


# Which files are fetched


def test_only_the_needed_files_of_a_model_are_fetched_and_stay_in_the_cache(with_model, hub, model_files):
    recipe(with_model, hub, "fetch", "model")
    assert {path.rsplit("/", 1)[-1] for path in hub.gets("/resolve/")} == set(model_files) - {
        "pytorch_model.bin", "model.onnx", "onnx/model.onnx",
    }  # fmt: skip
    fetched = manifest(with_model)
    assert (fetched["license"], fetched["path"], fetched["converted"]) == ("apache-2.0", None, False)
    for file in fetched["files"]:
        assert hashlib.sha256(model_files[file["name"]]).hexdigest() == file["sha256"]
    assert not list((with_model / "models").rglob("*.safetensors"))
    assert hub.endpoint not in (with_model / "models/base/manifest.json").read_text()


def test_a_second_fetch_downloads_nothing_and_works_offline(with_model, hub):
    recipe(with_model, hub, "fetch", "model")
    first, num_requests = sha256_tree(with_model / "models/base"), len(hub.gets("/resolve/"))
    recipe(with_model, hub, "fetch", "model")
    assert len(hub.gets("/resolve/")) == num_requests and sha256_tree(with_model / "models/base") == first
    hub.gone()
    recipe(with_model, hub, "fetch", "model", HF_HUB_OFFLINE="1")
    assert sha256_tree(with_model / "models/base") == first


def test_rows_are_copied_with_their_license(with_data, hub, parquet):
    recipe(with_data, hub, "fetch", "data")
    fetched = json.loads((with_data / "data/raw/manifest.json").read_text())
    assert fetched["license"] == "cc-by-nc-4.0" and fetched["id"] == DATA
    (file,) = fetched["files"]
    assert file["split"] == "train" and (with_data / "data/raw" / file["name"]).read_bytes() == parquet
    first = sha256_tree(with_data / "data/raw")
    hub.gone()
    recipe(with_data, hub, "fetch", "data", HF_HUB_OFFLINE="1")
    assert sha256_tree(with_data / "data/raw") == first


def test_splits_are_read_from_the_card_of_the_dataset(folder, hub):
    card = b"""---
configs:
- config_name: short
  data_files: [{split: train, path: a/one.jsonl}, {split: dev, path: a/two.jsonl}]
- config_name: long
  data_files: [{split: train, path: b/*.jsonl}]
---
"""
    rows = b'{"instruction": "a", "output": "b"}\n'
    files = {"README.md": card, "a/one.jsonl": rows, "a/two.jsonl": rows * 2, "b/x.jsonl": rows * 3}
    pinned(folder, "data", hub.add("dataset", DATA, files))
    assert "data.subset is None: Config name is missing" in recipe(folder, hub, "fetch", "data", code=2)
    edit(folder, "subset: null", "subset: short")
    edit(folder, "validation_split: null", "validation_split: dev")
    recipe(folder, hub, "fetch", "data")
    fetched = json.loads((folder / "data/raw/manifest.json").read_text())
    assert [(file["name"], file["split"]) for file in fetched["files"]] == [
        ("a/one.jsonl", "train"), ("a/two.jsonl", "validation"),
    ]  # fmt: skip
    edit(folder, "validation_split: dev", "validation_split: test")
    assert "has no split 'test'. Its splits are train, dev" in recipe(folder, hub, "fetch", "data", code=2)
    edit(folder, "subset: short", "subset: middle")
    assert "data.subset is 'middle'" in recipe(folder, hub, "fetch", "data", code=2)


def test_rows_in_an_unsupported_format_are_rejected(folder, hub):
    pinned(folder, "data", hub.add("dataset", DATA, {"train.txt": b"a line\n"}))
    assert "the split 'train' contains train.txt" in recipe(folder, hub, "fetch", "data", code=3)


# Pinning


def test_an_unpinned_revision_is_rejected_and_pin_writes_the_commit(folder, hub, model_files, parquet):
    out = recipe(folder, hub, "fetch", "model", code=2)
    assert "model.revision is null, not a 40-digit commit" in out and "`recipe pin`" in out
    edit(folder, "revision: null", "revision: v1")
    assert "data.revision is 'v1'" in recipe(folder, hub, "fetch", "data", code=2)
    model = hub.add("model", MODEL, model_files)
    data = hub.add("dataset", DATA, {"train.parquet": parquet}, branches=("main", "v1"))
    before = (folder / "params.yaml").read_text()
    out = recipe(folder, hub, "pin")
    after = (folder / "params.yaml").read_text()
    assert f"+  revision: {data}" in out and f"+  revision: {model}" in out and "-  revision: v1" in out
    assert [line for line in after.splitlines() if "revision:" not in line] == [
        line for line in before.splitlines() if "revision:" not in line
    ]
    assert after.count("which `recipe pin` looks up") == 2
    assert "nothing to pin" in recipe(folder, hub, "pin")
    moved = hub.add("model", MODEL, {**model_files, "new": b""})
    assert model not in recipe(folder, hub, "pin") and f"+  revision: {moved}" in recipe(folder, hub, "pin", "--update")


def test_a_missing_repository_or_revision_and_an_invalid_name_are_reported(folder, hub, model_files):
    out = recipe(folder, hub, "pin", code=2)
    assert f"/datasets/{DATA} does not exist or is private (HF_TOKEN is not set)" in out
    pinned(folder, "model", "a1" * 20)
    hub.add("model", MODEL, model_files)
    assert f"model.revision: {MODEL} has no revision {'a1' * 20}" in recipe(folder, hub, "fetch", "model", code=2)
    edit(folder, f"id: {MODEL}", "id: a/b/c")
    assert "'a/b/c', not a valid name on the Hub" in recipe(folder, hub, "fetch", "model", code=2)


# Faults


def blobs(folder):
    return folder.parent / "hf/hub/models--owner--tiny/blobs"


def test_an_interrupted_download_resumes_where_it_stopped(with_large_model, hub):
    hub.fail("model.safetensors", "cut")
    recipe(with_large_model, hub, "fetch", "model")
    ranges = [byte_range for _, path, byte_range, _ in hub.requests if path.startswith("/cdn/")]
    assert ranges[0] is None and len(ranges) == 2
    assert int(ranges[1].removeprefix("bytes=").rstrip("-")) > 0.4 * len(large(hub))
    assert sum(sent for path, sent in hub.sent.items() if path.startswith("/cdn/")) < 1.1 * len(large(hub))
    assert not list(blobs(with_large_model).glob("*.incomplete"))


@pytest.mark.slow
def test_a_killed_fetch_resumes_in_the_next_run(with_large_model, hub):
    with_model = with_large_model
    hub.fail("model.safetensors", "slow")
    process = subprocess.Popen([*RECIPE, "fetch", "model"], cwd=with_model, env=environment(with_model, hub))
    cdn, deadline = f"/cdn/{hashlib.sha256(large(hub)).hexdigest()}", time.monotonic() + 60
    while hub.sent[cdn] < len(large(hub)) * 0.6 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "already downloaded" in recipe(with_model, hub, "fetch", "model")
    assert any(path == cdn and byte_range for _, path, byte_range, _ in hub.requests)
    assert manifest(with_model)["files"]


def sent(hub, data):
    """The number of bytes of a file that were sent over plain HTTP."""
    return hub.sent[f"/cdn/{hashlib.sha256(data).hexdigest()}"]


@pytest.mark.slow
def test_a_file_in_xet_storage_comes_from_there(with_large_model, hub, tmp_path):
    hub.store_in_xet(large(hub), tmp_path / "storage")
    out = recipe(with_large_model, hub, "fetch", "model")
    assert "Xet" not in out and sent(hub, large(hub)) == 0
    blob = blobs(with_large_model) / hashlib.sha256(large(hub)).hexdigest()
    assert blob.read_bytes() == large(hub)
    shutil.rmtree(with_large_model.parent / "hf")
    recipe(with_large_model, hub, "fetch", "model", HF_HUB_DISABLE_XET="1")
    assert blob.read_bytes() == large(hub) and sent(hub, large(hub)) == len(large(hub))


def test_the_files_of_a_download_share_a_client_and_a_token(with_large_model, hub, tmp_path):
    files = hub.repositories["model", MODEL].files
    files["tokenizer.model"] = bytes(reversed(large(hub)))  # any second large file
    for data in (large(hub), files["tokenizer.model"]):
        hub.store_in_xet(data, tmp_path / "storage")
    recipe(with_large_model, hub, "fetch", "model", code=None)
    assert sent(hub, large(hub)) == sent(hub, files["tokenizer.model"]) == 0
    assert len(hub.gets("/api/xet-token")) == 1


@pytest.mark.slow
def test_a_failed_file_ends_a_stalled_transfer(with_large_model, hub, tmp_path):
    """The storage accepts connections and never answers; meanwhile, another file fails."""
    hub.store_in_xet(large(hub), tmp_path / "storage")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hub.xet_storage = f"http://127.0.0.1:{silent.getsockname()[1]}"
        hub.fail("tokenizer.json", 500, times=99)
        started = time.monotonic()
        out = recipe(with_large_model, hub, "fetch", "model", code=4)
        assert "returned HTTP status 500" in out
        assert time.monotonic() - started < 45  # 80 s if the transfer were not ended


@pytest.mark.slow
def test_xet_resumes_what_plain_http_received(with_large_model, hub, tmp_path):
    hub.fail("model.safetensors", "cut", times=99)
    recipe(with_large_model, hub, "fetch", "model", code=4)
    before = sent(hub, large(hub))
    assert before > len(large(hub)) / 2
    hub.store_in_xet(large(hub), tmp_path / "storage")
    assert "already downloaded" in recipe(with_large_model, hub, "fetch", "model")
    assert sent(hub, large(hub)) == before and manifest(with_large_model)["files"]


CUT = f"""
import runpy, sys
sys.path.insert(0, {str(ROOT)!r})
from recipe.fetch import xet
stream = xet.stream
def cut(*arguments):
    chunk = next(stream(*arguments))
    yield chunk[: len(chunk) // 2]
    raise xet.XetError("the storage failed")
xet.stream = cut
sys.argv = ["recipe", "fetch", "model"]
runpy.run_path({str(ROOT / "recipe/__main__.py")!r}, run_name="__main__")
"""


@pytest.mark.slow
def test_plain_http_resumes_what_xet_delivered(with_large_model, hub, tmp_path):
    hub.store_in_xet(large(hub), tmp_path / "storage")
    done = subprocess.run(
        [sys.executable, "-c", CUT], cwd=with_large_model, env=environment(with_large_model, hub), text=True,
        capture_output=True, check=True,
    )  # fmt: skip
    assert "Xet failed (the storage failed); continuing over plain HTTP" in done.stdout
    assert 0 < sent(hub, large(hub)) <= len(large(hub)) / 2 + 1 and manifest(with_large_model)["files"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["unreachable", "refused", "unknown file", "wrong bytes"])
def test_plain_http_takes_over_if_xet_fails(with_large_model, hub, tmp_path, fault):
    other = bytes([large(hub)[0] ^ 1]) + large(hub)[1:]
    hub.store_in_xet(other if fault == "wrong bytes" else large(hub), tmp_path / "storage")
    digest = hashlib.sha256(large(hub)).hexdigest()
    if fault == "wrong bytes":
        hub.xet_hashes[digest] = hub.xet_hashes.pop(hashlib.sha256(other).hexdigest())
    if fault == "unreachable":
        hub.xet_storage = "http://127.0.0.1:9"
    if fault == "refused":
        hub.fail("/api/xet-token", 401, times=99)
    if fault == "unknown file":
        hub.xet_hashes[digest] = "0" * 64
    out = recipe(with_large_model, hub, "fetch", "model")
    assert ("continuing over plain HTTP" in out) == (fault != "wrong bytes")
    assert sent(hub, large(hub)) == len(large(hub)) and manifest(with_large_model)["files"]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["model.safetensors", "/config.json"])
def test_wrong_bytes_are_fetched_again_once_and_then_rejected(with_model, hub, where, model_files):
    hub.fail(where, "wrong")
    recipe(with_model, hub, "fetch", "model")
    shutil.rmtree(with_model.parent / "hf")
    hub.fail(where, "wrong", times=2)
    out = recipe(with_model, hub, "fetch", "model", code=3)
    where = where.strip("/")
    data = model_files[where]
    listed = hashlib.sha256(data).hexdigest() if where.endswith(".safetensors") else blob_id(data)
    assert f"{where} of {MODEL} differed twice from the Hub's listing: expected" in out and listed in out


@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_a_damaged_file_in_the_cache_is_detected_and_fetched_again(with_model, hub, damage, model_files):
    recipe(with_model, hub, "fetch", "model")
    first = sha256_tree(with_model / "models/base")
    data = model_files["model.safetensors"]
    blob = blobs(with_model) / hashlib.sha256(data).hexdigest()
    blob.chmod(0o644)
    blob.write_bytes(data[:-10] if damage == "truncated" else data[:-10] + bytes(10))
    recipe(with_model, hub, "fetch", "model")
    assert blob.read_bytes() == data and sha256_tree(with_model / "models/base") == first


@pytest.mark.slow
@pytest.mark.parametrize("status", [429, 500])
def test_temporary_errors_are_retried(with_model, hub, status):
    hub.fail("/api/models", status)
    hub.fail("config.json", status)
    hub.fail("model.safetensors", status)
    recipe(with_model, hub, "fetch", "model")


@pytest.mark.slow
def test_a_persistent_error_gives_one_line(with_model, hub):
    hub.fail("model.safetensors", 500, times=99)
    out = recipe(with_model, hub, "fetch", "model", code=4)
    assert f"error: {hub.endpoint} returned HTTP status 500 for {MODEL}. The received data is kept in" in out
    hub.faults.clear()
    recipe(with_model, hub, "fetch", "model")


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "between"])
def test_an_unreachable_hub_gives_one_line(with_model, hub, when):
    if when == "before":
        hub.gone()
    else:
        hub.fail("model.safetensors", "cut", times=99)
    started = time.monotonic()
    out = recipe(with_model, hub, "fetch", "model", code=4)
    assert time.monotonic() - started < 180
    assert re.search(rf"error: {hub.endpoint} is unreachable: .+ Set HF_HUB_OFFLINE=1 to use only the cache\.", out)
    assert ("is kept in" in out) == (when == "between")


@pytest.mark.slow
def test_a_hub_that_never_responds_gives_one_line_within_a_minute(with_model, hub):
    hub.fail("/api/models", "stall", times=99)
    started = time.monotonic()
    assert "is unreachable" in recipe(with_model, hub, "fetch", "model", code=4)
    assert time.monotonic() - started < 180


def test_a_gated_model_needs_a_token_which_is_never_printed_or_saved(with_model, hub, model_files):
    hub.add("model", MODEL, model_files, gated=True)
    out = recipe(with_model, hub, "fetch", "model", code=4)
    assert f"is gated (HF_TOKEN is not set). Accept its terms on {hub.endpoint}/{MODEL}" in out
    out = recipe(with_model, hub, "fetch", "model", code=4, HF_TOKEN="hf_wrong")
    assert "HF_TOKEN is set, but does not give access" in out and "hf_wrong" not in out
    out = recipe(with_model, hub, "fetch", "model", HF_TOKEN="hf_right")
    assert "hf_right" not in out
    for path in with_model.parent.rglob("*"):
        assert not path.is_file() or path.is_symlink() or b"hf_right" not in path.read_bytes()


def test_offline_fetch_without_cached_files_is_reported(with_model, hub):
    out = recipe(with_model, hub, "fetch", "model", code=4, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set, but the file list of owner/tiny@" in out and not hub.requests


# Invalid repositories


def test_remote_code_is_rejected_before_weights_are_downloaded(with_model, hub, model_files):
    config = json.loads(model_files["config.json"]) | {"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}
    hub.repositories.clear()
    edit(with_model, manifest_revision(with_model), hub.add("model", MODEL, {
        **model_files, "config.json": json.dumps(config).encode(), "modeling_x.py": b"raise SystemExit(99)",
    }))  # fmt: skip
    out = recipe(with_model, hub, "fetch", "model", code=2)
    assert "owner/tiny needs remote code (config.json: auto_map)" in out and "trust_remote_code" in out
    assert not hub.gets("model.safetensors") and not hub.gets(".py")
    edit(with_model, "trust_remote_code: false", "trust_remote_code: true")
    recipe(with_model, hub, "fetch", "model")
    assert manifest(with_model)["remote_code"] and "modeling_x.py" in [
        file["name"] for file in manifest(with_model)["files"]
    ]


def manifest_revision(folder):
    return re.findall(r"revision: ([0-9a-f]{40})", (folder / "params.yaml").read_text())[-1]


def test_the_error_for_a_repository_without_weights_lists_its_files(with_model, hub, model_files):
    files = {name: data for name, data in model_files.items() if name not in {"model.safetensors", "pytorch_model.bin"}}
    edit(with_model, manifest_revision(with_model), hub.add("model", MODEL, files))
    assert "model.id: owner/tiny: it has no model.safetensors" in recipe(with_model, hub, "fetch", "model", code=3)


def test_all_chat_templates_of_a_model_are_fetched(with_model, hub, model_files):
    """The tokenizers of Command R and of Hermes contain several templates, in files of their own."""
    templates = {
        "chat_template.jinja": b"{{ messages }}", "additional_chat_templates/tool_use.jinja": b"{{ tools }}"
    }  # fmt: skip
    edit(with_model, manifest_revision(with_model), hub.add("model", MODEL, {**model_files, **templates}))
    recipe(with_model, hub, "fetch", "model")
    folder = with_model / "models/base/tokenizer"
    assert load_tokenizer(folder).chat_template == {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    manifest = json.loads((with_model / "models/base/manifest.json").read_text())
    assert manifest["tokenizer_sha256"] == sha256_tree(folder)


@pytest.mark.slow
def test_the_error_for_an_emptied_cache_recommends_fetch_model(with_model, with_data, hub):
    recipe(with_model, hub, "fetch", "model")
    recipe(with_data, hub, "fetch", "data")
    recipe(with_model, hub, "prepare")
    first = sha256_tree(with_model / "models/base")
    shutil.rmtree(with_model.parent / "hf")
    out = recipe(with_model, hub, "train", code=4)
    assert "is missing. Run `recipe fetch model` to restore the file (no outputs will change)" in out
    recipe(with_model, hub, "fetch", "model")
    assert sha256_tree(with_model / "models/base") == first


def test_prepare_and_analyze_never_contact_the_hub(with_model, with_data, hub):
    """Only fetch, pin and plan use the network, even without HF_HUB_OFFLINE."""
    recipe(with_model, hub, "fetch", "model")
    recipe(with_data, hub, "fetch", "data")
    num_requests = len(hub.requests)
    recipe(with_model, hub, "prepare", HF_HUB_OFFLINE="0")
    recipe(with_model, hub, "analyze", HF_HUB_OFFLINE="0")
    assert len(hub.requests) == num_requests


@pytest.mark.slow
def test_concurrent_fetches_share_the_cache(with_model, hub, tmp_path):
    """Two recipe folders with the same cache: each file is downloaded once, while the other process waits."""
    other = tmp_path / "other"
    shutil.copytree(with_model, other, symlinks=True)
    hub.fail("model.safetensors", "slow")
    processes = [
        subprocess.Popen(
            [*RECIPE, "fetch", "model"], cwd=place, env=environment(with_model, hub),
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for place in (with_model, other)
    ]  # fmt: skip
    outs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outs
    assert len([path for path in hub.gets() if path.startswith("/cdn/")]) == 1


def test_git_blob_id_matches_git(tmp_path):
    from recipe.fetch.download import git_blob_id

    (tmp_path / "a").write_bytes(b"some bytes\n")
    expected = subprocess.run(["git", "hash-object", "a"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert git_blob_id(Path(tmp_path / "a")) == expected.stdout.strip()


# The plan


XGEN = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 51200, "hidden_size": 4096,
    "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 8192,
}  # fmt: skip


def test_a_large_model_without_a_gpu_stops_before_its_weights_and_recommends_the_demo(with_data, hub, model_files):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    files = {**model_files, "config.json": json.dumps(XGEN).encode()}
    pinned(with_data, "model", hub.add("model", MODEL, files, card={"license": "apache-2.0"}))
    out = recipe(with_data, hub, "plan", code=4)
    assert re.search(r"does not fit: 6\.9 billion parameters are too many to train on a CPU.*`make demo`", out)
    assert re.search(rf"model +{MODEL}@\w{{8}}: 5\d\d\.\d kB to download, license apache-2.0", out)
    out = recipe(with_data, hub, "fetch", "model", code=4)
    assert (
        "6.9 billion parameters are too many to train on a CPU, and there is no CUDA GPU" in out
        and "`make demo`" in out
    )
    assert not hub.gets("model.safetensors")
    # With --force, the weights are downloaded. Only then is it found that they are those of a small model.
    out = recipe(with_data, hub, "fetch", "model", "--force", code=3)
    assert hub.gets("model.safetensors") and "do not fit LlamaForCausalLM" in out


@pytest.mark.slow
def test_plan_reports_rows_steps_disk_memory_time_and_licenses(with_model, hub, parquet):
    rows = {"train.parquet": parquet, "README.md": b"---\nlicense: cc-by-nc-4.0\n---\n", "large.txt": bytes(10**6)}
    commit = hub.add("dataset", DATA, rows, card={"license": "cc-by-nc-4.0"})
    pinned(with_model, "data", commit)
    out = recipe(with_model, hub, "plan")
    for line in (
        rf"data +{DATA}@{commit[:8]}: \d\.\d kB to download, license cc-by-nc-4.0 \(no commercial use\)",
        rf"model +{MODEL}@\w+: \d+\.\d kB to download",
        r"disk +\d+\.\d kB in .*/hf, .* free",
        r"rows +57 to train on \(estimated\)",
        r"steps +\d+ of 4 sequences \(estimated\)",
        r"memory +\d+\.\d MB of .* \(CPU\), of which",
        r"evaluate +\d+\.\d MB of memory",
        r"activations kept for the backward pass",
        r"time +about .* \(estimated: ",
        r"fits this machine",
    ):
        assert re.search(line, out), (line, out)
    assert not hub.gets("model.safetensors")
    assert all(
        byte_range for method, path, byte_range, _ in hub.requests if method == "GET" and "train.parquet" in path
    )
    estimate = int(re.search(r"tokens +([\d,]+) in", out)[1].replace(",", ""))
    recipe(with_model, hub, "fetch", "model")
    recipe(with_model, hub, "fetch", "data")
    recipe(with_model, hub, "prepare")
    meta = json.loads((with_model / "data/prepared/meta.json").read_text())
    assert meta["tokens"]["train"] < 3 * estimate < 9 * meta["tokens"]["train"]  # made-up text, its own tokenizer
    out = recipe(with_model, hub, "plan")
    assert f"{meta['rows']['train']} to train on\n" in out and "0 bytes to download" in out


@pytest.mark.slow
def test_damaged_converted_weights_are_converted_again(with_model, hub, model_files):
    """Converted weights are verified at every fetch; otherwise the manifest would record the damaged file."""
    import io

    import torch
    from safetensors.torch import load

    data = io.BytesIO()
    torch.save(load(model_files["model.safetensors"]), data)
    files = {name: content for name, content in model_files.items() if name != "model.safetensors"}
    commit = hub.add("model", MODEL, {**files, "pytorch_model.bin": data.getvalue()})
    edit(with_model, manifest_revision(with_model), commit)
    recipe(with_model, hub, "fetch", "model")
    first = sha256_tree(with_model / "models/base")
    converted = with_model.parent / "hf/recipe/converted/owner--tiny" / commit
    for damage in (
        lambda path: path.write_bytes(path.read_bytes()[:-4] + b"\0\0\1\0"),
        lambda path: path.write_bytes(path.read_bytes()[:-10]),
        lambda path: path.unlink(),
    ):
        damage(converted / "model.safetensors")
        recipe(with_model, hub, "fetch", "model")
        assert sha256_tree(with_model / "models/base") == first


def test_weights_from_before_torch_1_6_are_converted(with_model, hub, model_files):
    """Such a file is not a zip archive, so it can't be memory-mapped."""
    import io

    import torch
    from safetensors.torch import load

    state, data = load(model_files["model.safetensors"]), io.BytesIO()
    torch.save(state, data, _use_new_zipfile_serialization=False)
    files = {name: content for name, content in model_files.items() if name != "model.safetensors"}
    commit = hub.add("model", MODEL, {**files, "pytorch_model.bin": data.getvalue()})
    edit(with_model, manifest_revision(with_model), commit)
    recipe(with_model, hub, "fetch", "model")
    converted = load(
        (with_model.parent / "hf/recipe/converted/owner--tiny" / commit / "model.safetensors").read_bytes()
    )
    assert converted.keys() == state.keys() and all(torch.equal(converted[name], state[name]) for name in state)


@pytest.mark.slow
def test_offline_fetch_rejects_an_incomplete_dataset(folder, hub):
    rows = b'{"instruction": "a", "output": "b"}\n'
    files = {f"train-0000{n}-of-00002.jsonl": rows * (n + 1) for n in range(2)}
    pinned(folder, "data", hub.add("dataset", DATA, files))
    hub.fail("train-00001", 500, times=99)
    recipe(folder, hub, "fetch", "data", code=4)
    hub.gone()
    out = recipe(folder, hub, "fetch", "data", code=4, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set, but files of owner/rows are missing or incomplete in the cache at" in out
    assert ": train-00001-of-00002.jsonl. Unset HF_HUB_OFFLINE once" in out
    assert not (folder / "data/raw").exists()


@pytest.mark.parametrize("path", ["/etc/x.jsonl", "../x.jsonl", "http://localhost:1/x.jsonl", "hf://datasets/a/b"])
def test_files_outside_the_repository_are_rejected(folder, hub, path):
    card = f"---\nconfigs:\n- config_name: a\n  data_files: {path}\n---\n".encode()
    rows = b'{"instruction": "a", "output": "b"}\n'
    pinned(folder, "data", hub.add("dataset", DATA, {"README.md": card, "train.jsonl": rows}))
    recipe(folder, hub, "fetch", "data", code=3)
    pinned(folder, "data", "null")
    hub.add("dataset", DATA, {"../outside.jsonl": rows}, commit="b" * 40)
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(re.sub(r"revision: \w{40}", f"revision: {'b' * 40}", text))
    assert "lists a file outside the repository" in recipe(folder, hub, "fetch", "data", code=3)


@pytest.mark.slow
def test_a_long_retry_after_is_not_waited_for(with_model, hub, monkeypatch):
    hub.retry_after = "3600"
    hub.fail("model.safetensors", 429, times=99)
    started = time.monotonic()
    assert "returned HTTP status 429" in recipe(with_model, hub, "fetch", "model", code=4)
    assert time.monotonic() - started < 180


@pytest.mark.parametrize("command", [("pin",), ("plan",), ("fetch", "data")])
def test_a_hub_source_without_an_id_is_rejected(folder, hub, command):
    edit(folder, f"id: {DATA}", "id: null")
    out = recipe(folder, hub, *command, code=2)
    assert "data.source is `hub`, but data.id is null. Set data.id to the repository's name on the Hub" in out
