"""`recipe verify`: which outputs are identical, what differs first, and what it leaves alone."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import RECIPE, alpaca, edit, paths_in, toy_rows, write_jsonl
from hub_server import FakeHub
from runs import ENVIRONMENT, children, run
from safetensors.numpy import save_file

from recipe.core.adapter import WEIGHTS
from recipe.verify.difference import difference
from recipe.verify.environment import FILE, differences, environment, record_environment


def pair(tmp_path, name, before, after):
    """Two files, named as an output would be, with the given text or bytes."""
    files = []
    for folder, content in (("recorded", before), ("rebuilt", after)):
        path = tmp_path / folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        files.append(path)
    return name, *files


def tensors(tmp_path, before, after):
    for folder, values in (("recorded", before), ("rebuilt", after)):
        (tmp_path / folder).mkdir(exist_ok=True)
        save_file(
            {name: np.array(value, np.float32) for name, value in values.items()}, tmp_path / folder / "a.safetensors"
        )
    return "a.safetensors", tmp_path / "recorded" / "a.safetensors", tmp_path / "rebuilt" / "a.safetensors"


def test_a_tensor_is_named_with_the_number_and_size_of_its_differences(tmp_path):
    files = tensors(tmp_path, {"a": [1, 2], "b": [0.5, 2, -4]}, {"a": [1, 2], "b": [0.5, 2.002, -4]})
    found = difference(*files, 0.0)
    assert found.text.startswith("1 of 2 tensors differ; first, b: 1 of 3 values differ, by at most 0.002 ")
    assert found.largest == pytest.approx(0.0005, rel=1e-3)
    assert difference(*files, 0.001) is None and difference(*files, 0.0001) is not None
    assert "tensor c is not recorded" in difference(*tensors(tmp_path, {"a": [1]}, {"a": [1], "c": [1]}), 1.0).text
    assert "has the shape (1,)" in difference(*tensors(tmp_path, {"a": [1]}, {"a": [1, 1]}), 1.0).text
    zeros = tensors(tmp_path, {"a": [0.0]}, {"a": [-0.0]})
    assert difference(*zeros, 0.0).text == "the values are equal, but the bytes are not"
    assert difference(*zeros, 0.1) is None


def test_nan_is_never_within_a_tolerance(tmp_path):
    for before, after in ((1.0, float("nan")), (float("nan"), 1.0), (1.0, float("inf"))):
        assert difference(*tensors(tmp_path, {"a": [before, 1]}, {"a": [after, 1]}), 0.5) is not None, (before, after)


def test_a_line_is_named_and_numbers_may_differ_by_the_tolerance(tmp_path):
    before, after = '{\n  "loss": 0.5,\n  "steps": 1,200\n}\n', '{\n  "loss": 0.501,\n  "steps": 1,200\n}\n'
    found = difference(*pair(tmp_path, "train.json", before, after), 0.0)
    assert found.text == 'line 2: "loss": 0.5, (recorded), "loss": 0.501, (here)'
    assert difference(*pair(tmp_path, "train.json", before, after), 0.01) is None
    other = difference(*pair(tmp_path, "train.json", before, before.replace("steps", "step")), 1.0)
    assert other.largest is None and other.text.startswith("line 3")
    assert difference(*pair(tmp_path, "loss.csv", "5,2.3\n", "5,2.4\n"), 0.0).largest == pytest.approx(0.1 / 2.4)
    hashes = pair(tmp_path, "registered.json", f'"sha256": "{"1e5" * 20}"', f'"sha256": "{"f" * 64}"')
    assert difference(*hashes, 0.1) is None and difference(*hashes, 0.0) is not None
    chart = "<p>0.5</p>\n<svg id='p5670b9'>\n<text>1.0</text>\n</svg>\n<p>0.7</p>\n"
    other = chart.replace("p5670b9", "p93e040").replace("<text>1.0</text>\n", "").replace("0.7", "0.701")
    assert difference(*pair(tmp_path, "index.html", chart, other), 0.01) is None  # ticks and ids of charts may differ
    assert difference(*pair(tmp_path, "index.html", chart, other), 0.0) is not None
    assert difference(*pair(tmp_path, "index.html", chart, other.replace("0.701", "0.8")), 0.01) is not None
    longer = difference(*pair(tmp_path, "loss.csv", "1\n2\n", "1\n2\n3\n"), 1.0)
    assert longer.text == "line 3:  (recorded), 3 (here)" and longer.largest is None
    words = difference(*pair(tmp_path, "report.html", "x" * 500 + " yes", "x" * 500 + " no"), 0.0)
    assert "yes (recorded)" in words.text and len(words.text) < 200


def test_a_row_is_named_with_its_column(tmp_path):
    names = []
    for folder, ids in (("recorded", [[1, 2], [3]]), ("rebuilt", [[1, 2], [4]])):
        (tmp_path / folder).mkdir()
        table = pa.table({"input_ids": ids, "seq": [1, 2]})
        with pa.ipc.new_stream(str(tmp_path / folder / "train.arrow"), table.schema) as writer:
            writer.write_table(table)
        names.append(tmp_path / folder / "train.arrow")
    assert difference("train.arrow", *names, 1.0).text == "row 2, input_ids: [3] (recorded), [4] (here)"


def test_other_files_are_compared_byte_by_byte(tmp_path):
    assert difference(*pair(tmp_path, "a.bin", b"ab\xff", b"ac\xff"), 1.0).text.startswith("byte 1 differs (3 bytes")


def test_the_environment_is_recorded_once_for_an_adapter(tmp_path):
    paths = paths_in(tmp_path, folder=tmp_path)
    paths.adapter.mkdir()
    save_file({"a": np.ones(2, np.float32)}, paths.adapter / WEIGHTS)
    record_environment(paths, 2)
    first = json.loads((tmp_path / FILE).read_text())
    assert first["threads"] == "2" and first["torch"].startswith("2.") and "avx2" in first["instruction sets"]
    record_environment(paths, 4)  # the same adapter, on a different machine
    assert json.loads((tmp_path / FILE).read_text()) == first
    save_file({"a": np.zeros(2, np.float32)}, paths.adapter / WEIGHTS)
    record_environment(paths, 4)
    second = json.loads((tmp_path / FILE).read_text())
    assert second["threads"] == "4" and second["adapter_sha256"] != first["adapter_sha256"]
    here = environment(tmp_path, 4)
    assert differences(second, here) == []
    assert differences(first, here) == ["threads: 2 (recorded), 4 (here)"]
    assert differences({}, {"GPU": "H100"}) == ["GPU: unknown (recorded), H100 (here)"]


@pytest.fixture(scope="module")
def recorded(commit, tiny_base, tmp_path_factory):
    """A recipe in a repository of its own, finished and committed. Its rows and its base model are not in git."""
    place = tmp_path_factory.mktemp("verify")
    shutil.copytree(tiny_base, place / "base")
    write_jsonl(place / "rows" / "train.jsonl", toy_rows(80))
    write_jsonl(place / "rows" / "validation.jsonl", [alpaca(f"Held {n}", "x y") for n in range(6)])
    run(place, "git", "clone", "-q", commit, place / "repository")
    run(place / "repository", *RECIPE, "new", "quick", "--data", "../rows", "--model", "../base")
    folder = place / "repository" / "presets" / "quick"
    edit(folder, "max_generations: 450", "max_generations: 2")
    edit(folder, "max_new_tokens: 64", "max_new_tokens: 4")
    edit(folder, "num_epochs: 1 ", "num_epochs: 12")
    edit(folder, "save_steps: 100", "save_steps: 10")
    assert "source: ../../../rows " in (folder / "params.yaml").read_text()
    run(folder, "dvc", "repro")
    run(folder, "git", "add", ".")
    run(folder, "git", "commit", "-q", "-m", "The recorded run")
    return folder


def verify(folder, *options, environment=None):
    done = subprocess.run(
        [*RECIPE, "verify", *options], cwd=folder, env={**ENVIRONMENT, **(environment or {})}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


def interrupted(folder, interrupt):
    """Start `recipe verify`, call `interrupt(process)` once training has a checkpoint; return the exit code and output.

    Every process that was running ends as well.
    """
    process = subprocess.Popen(
        [*RECIPE, "verify"], cwd=folder, env={**ENVIRONMENT, "MLFLOW_TRACKING_URI": "http://127.0.0.1:1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    deadline, known = time.monotonic() + 300, set(checkpoints(folder))
    while not set(checkpoints(folder)) - known:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    descendants = children(process.pid)
    interrupt(process)
    text, _ = process.communicate(timeout=30)
    while any(Path(f"/proc/{pid}").exists() for pid in descendants):
        assert time.monotonic() < deadline, descendants
        time.sleep(0.1)
    return process.returncode, text


def checkpoints(folder):
    return folder.glob(".recipe/verify/**/.recipe/checkpoints/*/checkpoint-*/complete.json")


def kill_dvc(process):
    """SIGKILL only for `dvc`, whose stage then saves a checkpoint and ends."""
    [dvc] = [pid for pid in children(process.pid) if b"dvc" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(dvc, signal.SIGKILL)


@pytest.mark.long
def test_a_commit_is_rebuilt_after_sigterm_without_the_cache_and_the_store_of_the_user(recorded):
    """Also after SIGKILL for `dvc`."""
    store = recorded.parents[1] / "mlflow" / "mlflow.db"
    before = store.stat().st_mtime_ns
    (recorded / "note.txt").write_text("not part of the commit")
    code, text = interrupted(recorded, lambda process: process.send_signal(signal.SIGTERM))
    assert code == 143, text
    assert "1 changed or untracked files of the working tree are not part of this commit" in text
    code, text = interrupted(recorded, kill_dvc)
    assert code == 4 and "resuming from checkpoint-" in text and "failed; see the messages above." in text, text
    code, text = verify(recorded, "--commit", "HEAD")
    assert code == 0, text
    assert "resuming the rebuild of " in text and "Stage 'prepare' didn't change, skipping" in text
    assert "resuming from checkpoint-" in text
    assert "models/adapter " in text and "identical: the rebuild has the recorded bytes in all " in text
    (recorded / "note.txt").unlink()
    assert store.stat().st_mtime_ns == before
    assert not [path for path in (recorded / ".recipe" / "verify").iterdir() if path.is_dir()]
    assert run(recorded, "git", "status", "--porcelain") == ""


@pytest.fixture
def other_machine(tmp_path):
    """The environment of a machine that computes slightly different updates, as a different processor may."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'train' in sys.orig_argv:\n"
        "    import torch\n"
        "    step = torch.optim.AdamW.step\n"
        "    def other(self, *args, **kwargs):\n"
        "        for group in self.param_groups:\n"
        "            group['lr'] *= 1.000001\n"
        "        return step(self, *args, **kwargs)\n"
        "    torch.optim.AdamW.step = other\n"
    )
    return {"PYTHONPATH": str(tmp_path)}


@pytest.mark.slow
def test_one_stage_is_rebuilt_from_recorded_inputs_and_the_first_difference_is_shown(recorded, other_machine):
    code, text = verify(recorded, "--stage", "train", environment=other_machine)
    assert code == 1, text
    assert "Running stage 'train'" in text and "Running stage 'prepare'" not in text
    assert "models/adapter/adapter_model.safetensors: " in text and " tensors differ; first, base_model." in text
    assert "The environment is the same as that of the recorded run" in text
    assert "different: 3 of 4 outputs. The first one is metrics/loss.csv, of the train stage." in text
    edit(recorded / FILE, '"threads": "2"', '"threads": "64"')
    run(recorded, "git", "commit", "-qam", "The record of a different machine")
    code, text = verify(recorded, "--stage", "train", "--tolerance", "0.01", environment=other_machine)
    assert code == 0 and "identical: all numbers are within 0.01 of the recorded ones in all 4 outputs." in text, text
    code, text = verify(recorded, "--stage", "train", environment=other_machine)
    assert code == 1 and "threads: 64 (recorded), 2 (here)" in text


@pytest.mark.long
def test_a_recipe_from_the_hub_is_rebuilt_from_its_cache_while_the_hub_is_gone(commit, tiny_base, tmp_path):
    rows = write_jsonl(tmp_path / "train.jsonl", toy_rows(80))
    with FakeHub() as hub:
        hub.add("model", "them/tiny", {file.name: file.read_bytes() for file in sorted(tiny_base.iterdir())})
        hub.add("dataset", "them/rows", {"train.jsonl": rows.read_bytes()})
        environment = {**ENVIRONMENT, **hub.environment(tmp_path / "hf"), "PATH": ENVIRONMENT["PATH"]}
        environment.pop("HF_HUB_OFFLINE", None)

        def here(place, *command):
            subprocess.run(list(map(str, command)), cwd=place, env=environment, check=True, stdout=subprocess.DEVNULL)

        here(tmp_path, "git", "clone", "-q", commit, tmp_path / "repository")
        here(tmp_path / "repository", *RECIPE, "new", "quick", "--data", "them/rows", "--model", "them/tiny")
        folder = tmp_path / "repository" / "presets" / "quick"
        edit(folder, "max_generations: 450", "max_generations: 2")
        edit(folder, "max_new_tokens: 64", "max_new_tokens: 4")
        here(folder, *RECIPE, "pin")
        here(folder, "dvc", "repro")
        here(folder, "git", "add", ".")
        here(folder, "git", "commit", "-q", "-m", "The recorded run")
        hub.gone()
        code, text = verify(folder, environment=environment)
        assert code == 0 and "identical: the rebuild has the recorded bytes" in text, text
        shutil.rmtree(tmp_path / "hf" / "hub" / "models--them--tiny")
        code, text = verify(folder, "--stage", "fetch", environment=environment)
        assert code == 4 and "them/tiny" in text and "Traceback" not in text, text


@pytest.mark.slow
def test_changed_rows_outside_git_are_named(recorded):
    rows = recorded.parents[2] / "rows" / "train.jsonl"
    before = rows.read_text()
    rows.write_text(before.replace("Say number 3 ", "Say number 4 "))
    try:
        code, text = verify(recorded, "--stage", "fetch")
    finally:
        rows.write_text(before)
    assert code == 1 and "note: ../../../rows is not the input that dvc.lock records." in text, text
    assert "data/raw/" in text and "models/base" in text


def test_what_cannot_be_verified_is_refused(tmp_path):
    def refused(code, message, *options, folder=tmp_path):
        found, text = verify(folder, *options)
        assert found == code and message in text and "Traceback" not in text, text

    refused(4, "`git rev-parse` failed in ")
    run(tmp_path, "git", "init", "-q")
    refused(4, "`git rev-parse` failed in ")
    (tmp_path / "a").write_text("a")
    run(tmp_path, "git", "add", ".")
    run(tmp_path, "git", "commit", "-q", "-m", "one")
    refused(2, "has no dvc.lock in ., so there is nothing to compare with")
    (tmp_path / "dvc.lock").write_text("stages:\n  train:\n    outs: []\n")
    run(tmp_path, "git", "add", ".")
    run(tmp_path, "git", "commit", "-q", "-m", "two")
    refused(2, "dvc.lock has no stage 'export'. The stages are train.", "--stage", "export")
    refused(4, "`git rev-parse` failed", "--commit", "nothing")
