"""Outputs and cached files that change without DVC's notice: each is found before a stage uses it."""

import json
import os
import re
import shutil
import subprocess

import pytest
from conftest import RECIPE, edit
from ruamel.yaml import YAML
from runs import ENVIRONMENT, run, stages_run

from recipe.core.errors import DataError
from recipe.verify.integrity import check_inputs, damages, md5_tree

pytestmark = pytest.mark.slow

FILES = {  # a file of each kind of output, and a stage that reads it
    "data/raw/train.jsonl": "prepare",
    "models/base/tokenizer/tokenizer.json": "prepare",
    "data/prepared/train.arrow": "train",
    "models/adapter/adapter_model.safetensors": "evaluate",
}


@pytest.fixture
def demo(finished, tmp_path):
    """A copy of the finished demo that tests may damage."""
    folder = tmp_path / "demo"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns(".venv", "presets", "mlflow", "__pycache__"))
    (folder / "presets").mkdir()
    return folder


def recorded(folder):
    """{path: md5} of every output in dvc.lock."""
    stages = YAML(typ="safe").load((folder / "dvc.lock").read_text())["stages"]
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}


def cached(folder, file):
    """The file in DVC's cache that has the content of a file in an output."""
    cache = folder / ".dvc/cache/files/md5"
    output, md5 = next((path, md5) for path, md5 in recorded(folder).items() if file.startswith(path + "/"))
    entries = json.loads((cache / md5[:2] / md5[2:]).read_text())
    md5 = next(entry["md5"] for entry in entries if f"{output}/{entry['relpath']}" == file)
    return cache / md5[:2] / md5[2:]


def flip(path):
    """Change one bit in the middle of a file. Its size, mode and modification time stay the same."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    with path.open("r+b") as file:  # keeps the inode
        file.write(content)
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def restore(folder, message):
    """Run the commands that a message recommends."""
    [commands] = re.findall(r"To restore it, run `(.*?)`\.", message)
    return run(folder, "sh", "-c", commands)


def test_the_hashes_of_undamaged_outputs_are_those_of_dvc(demo):
    assert damages(demo) == []
    assert {path: md5_tree(demo / path) for path in recorded(demo)} == recorded(demo)


@pytest.mark.parametrize("file", FILES)
def test_a_damaged_output_is_named_before_a_stage_reads_it(demo, file, monkeypatch, capsys):
    flip(demo / file)
    monkeypatch.setenv("DVC_STAGE", FILES[file])
    with pytest.raises(DataError, match=rf"^{re.escape(file)} differs from what dvc\.lock records for the \S+ stage\."):
        check_inputs(demo, FILES[file])
    monkeypatch.delenv("DVC_STAGE")
    check_inputs(demo, FILES[file])  # dvc.lock may describe an earlier run
    assert f"note: {file} differs" in capsys.readouterr().err
    flip(demo / file)
    assert damages(demo) == []


def test_a_damaged_file_in_the_cache_is_named_before_a_stage_reads_its_copy(demo):
    for file in FILES:
        flip(cached(demo, file))
    shutil.rmtree(demo / "data")
    shutil.rmtree(demo / "models")
    run(demo, "dvc", "checkout", "data/raw", "data/prepared", "models/base", "models/adapter")
    found = {damage.file: damage.message() for damage in damages(demo)}
    assert found.keys() == FILES.keys()
    for file, message in found.items():
        assert ", and its copy in DVC's cache is damaged. " in message and str(cached(demo, file)) in message


def test_extra_and_missing_files_are_named(demo):
    for name in ("data/prepared/train.arrow", "models/adapter/README.md"):
        (demo / name).unlink(missing_ok=True)
    (demo / "data/raw/extra.jsonl").write_text("{}\n")
    found = {damage.output: damage for damage in damages(demo)}
    assert found["data/prepared"].message().startswith("data/prepared/train.arrow is missing, but dvc.lock records it")
    assert found["data/raw"].message().startswith("data/raw/extra.jsonl is not one of the files that dvc.lock records")


def test_dvc_repro_restores_a_file_whose_time_changed(demo):
    """DVC notices this change itself."""
    flip(demo / "data/prepared/train.arrow")
    os.utime(demo / "data/prepared/train.arrow")
    assert stages_run(run(demo, "dvc", "repro")) == []
    assert damages(demo) == []


def test_a_stage_stops_at_a_damaged_input_and_the_recommended_commands_restore_it(demo):
    file, object_ = "data/prepared/train.arrow", cached(demo, "data/prepared/train.arrow")
    run(demo, "dvc", "status")  # DVC records the time and size of each file in this copy
    flip(demo / file)
    assert "up to date" in run(demo, "dvc", "repro")
    output = run(demo, "dvc", "repro", "-f", "-s", "analyze", check=False)
    assert f"error: {file} differs" in output and "exited with 3" in output
    restore(demo, output)
    assert damages(demo) == []

    flip(object_)
    shutil.rmtree(demo / "data/prepared")
    assert stages_run(run(demo, "dvc", "repro")) == []  # everything is up to date, with a damaged copy
    output = run(demo, "dvc", "repro", "-f", "-s", "analyze", check=False)
    assert f"error: {file} differs" in output and "its copy in DVC's cache is damaged" in output
    summary = subprocess.run(
        [*RECIPE, "summary"], cwd=demo, env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert summary.stderr.startswith(f"note: {file} differs") and "The adapter is better" in summary.stdout
    lock = (demo / "dvc.lock").read_bytes()
    assert stages_run(restore(demo, output)) == ["prepare"]
    assert damages(demo) == [] and (demo / "dvc.lock").read_bytes() == lock


def test_an_intended_change_can_be_kept(demo):
    edit(demo / "data/raw/train.jsonl", "the", "teh")
    output = run(demo, "dvc", "repro", "-f", "-s", "prepare", check=False)
    [command] = re.findall(r"If the change is intended, run `(.*?)` instead", output)
    run(demo, *command.split())
    assert damages(demo) == []
