"""The whole pipeline as a user runs it: `dvc repro` in fresh clones, killed, changed, and on real data."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, alpaca, edit, toy_rows, write_jsonl

from recipe.files import sha256_file

pytestmark = pytest.mark.slow
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t", "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@t",
}  # fmt: skip
ENVIRONMENT.pop("MLFLOW_TRACKING_URI", None)
ENVIRONMENT["PYTHONHASHSEED"] = "0"  # as `make` has it: the order of the stages in a new dvc.lock
ENVIRONMENT["SHELL"] = "/bin/sh"  # DVC runs a stage in the user's shell; dash, unlike bash, stays between the two


def run(folder, *command, check=True):
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stdout[-5000:]
    return done.stdout


def stages_run(output):
    return re.findall(r"Running stage '([\w@]+)'", output)


@pytest.fixture(scope="module")
def commit(tmp_path_factory):
    """A repository with one commit: the files here that git tracks or would track, without dvc.lock."""
    folder = tmp_path_factory.mktemp("origin") / "recipe"
    listed = run(ROOT, "git", "ls-files", "-co", "--exclude-standard", "-z").split("\0")
    for name in filter(None, listed):
        if (ROOT / name).exists() and not name.endswith("dvc.lock") and not name.startswith(("metrics/", "presets/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    run(folder, "git", "init", "-q", "-b", "main")
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-q", "-m", "one")
    return folder


@pytest.fixture(scope="module")
def finished(commit, tmp_path_factory):
    """A clone in which `dvc repro` ran through."""
    folder = tmp_path_factory.mktemp("a") / "r"
    run(folder.parent, "git", "clone", "-q", commit, folder)
    run(folder, "dvc", "repro")
    return folder


def test_the_default_teaches_what_it_is_for_and_a_second_repro_runs_nothing(finished):
    scores = json.loads((finished / "metrics" / "evaluate.json").read_text())
    assert scores["base"]["exact_match"] <= 0.05 and scores["adapter"]["exact_match"] >= 0.50
    again = run(finished, "dvc", "repro")
    assert stages_run(again) == [] and "up to date" in again
    assert run(finished, "git", "status", "--porcelain", "--untracked-files=no") == ""
    assert "models:/recipe-demo@champion" in run(finished, "recipe", "summary")


def children(pid):
    """Every living process below `pid`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid:
            found += [int(entry.name), *children(int(entry.name))]
    return found


def test_a_killed_training_in_another_clone_ends_in_the_same_lock(finished, commit, tmp_path):
    """Another path, another length, a cache of its own; SIGKILL for `dvc` alone, in the middle of training."""
    folder = tmp_path / "another" / "place with a longer name" / "recipe-clone"
    folder.parent.mkdir(parents=True)
    run(folder.parent, "git", "clone", "-q", commit, folder)
    process = subprocess.Popen(
        ["dvc", "repro", "train"], cwd=folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not list(folder.glob(".recipe/checkpoints/*/checkpoint-100/complete.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    below = children(process.pid)
    assert below
    process.kill()
    process.wait()
    # Nobody trains on beside the next run.
    while any(Path(f"/proc/{pid}").exists() for pid in below):
        assert time.monotonic() < deadline, below
        time.sleep(0.1)
    assert "going on from checkpoint-" in run(folder, "dvc", "repro")
    assert (folder / "dvc.lock").read_bytes() == (finished / "dvc.lock").read_bytes()


@pytest.fixture
def quick(finished, tiny_base, tmp_path):
    """A recipe of seconds beside the root recipe, run through."""
    write_jsonl(tmp_path / "rows" / "train.jsonl", toy_rows(80))
    write_jsonl(tmp_path / "rows" / "validation.jsonl", [alpaca(f"Held {n}", "x y") for n in range(6)])
    run(finished, "recipe", "new", "quick", "--data", tmp_path / "rows", "--model", tiny_base)
    folder = finished / "presets" / "quick"
    edit(folder, "num_prompts: 450", "num_prompts: 2")
    edit(folder, "max_new_tokens: 64", "max_new_tokens: 4")
    root_lock = (finished / "dvc.lock").read_bytes()
    assert len(stages_run(run(folder, "dvc", "repro"))) == 7
    assert (finished / "dvc.lock").read_bytes() == root_lock and (folder / "dvc.lock").is_file()
    assert stages_run(run(finished, "dvc", "repro")) == []
    yield folder
    shutil.rmtree(folder)


def test_a_change_reruns_what_depends_on_it_and_nothing_else(quick, tmp_path):
    def repro():
        return stages_run(run(quick, "dvc", "repro"))

    edit(quick, "  r: 16", "  r: 4")
    assert repro() == ["train", "evaluate", "register"]
    edit(quick, "max_length: 256", "max_length: 200")
    assert repro() == ["prepare", "analyze", "train", "evaluate", "register"]
    write_jsonl(tmp_path / "rows" / "train.jsonl", toy_rows(81))
    assert repro() == ["fetch@data", "prepare", "analyze", "train", "evaluate", "register"]
    # A changed comment in a file that only analyze imports; its outputs stay, so nothing runs after it.
    code = quick.resolve().parents[1] / "recipe" / "analyze.py"
    code.write_text(code.read_text() + "# A comment.\n")
    assert repro() == ["analyze"]
    cli = code.with_name("cli.py")
    cli.write_text(cli.read_text() + "# A comment.\n")
    assert repro() == []


REAL = {
    "alpaca_en_999.json": "max_length: 1024",
    "gsm8k_train.json": "max_length: 512",
}
MOST_ROWS = 1500  # of GSM8K's 7,473: all of them take 12 minutes, which docs/RESULTS.md tells


@pytest.mark.parametrize("name", REAL)
def test_real_rows_go_through_all_stages_and_the_loss_falls(finished, shared, name, tmp_path):
    recipe = f"real-{name.split('_')[0]}"
    rows = tmp_path / name
    rows.write_text(json.dumps(json.loads((shared / name).read_text())[:MOST_ROWS]))
    run(finished, "recipe", "new", recipe, "--data", rows)
    folder = finished / "presets" / recipe
    edit(folder, "sha256: null ", f"sha256: {sha256_file(rows)} ")
    edit(folder, "max_length: 256", REAL[name])
    edit(folder, "num_prompts: 450", "num_prompts: 8")
    edit(folder, "kind: kind", "")
    # Not fetch@model where the other test has run: DVC knows its result.
    ran = set(stages_run(run(folder, "dvc", "repro")))
    assert ran - {"fetch@model"} == {"fetch@data", "prepare", "analyze", "train", "evaluate", "register"}
    scores = json.loads((folder / "metrics" / "evaluate.json").read_text())
    assert scores["adapter"]["loss"] < scores["base"]["loss"] - 0.1
    meta = json.loads((folder / "data" / "prepared" / "meta.json").read_text())
    notes = json.loads((folder / ".recipe" / "notes.json").read_text())
    seconds = {stage: facts["stage_seconds"] for stage, facts in notes.items()}
    losses = scores["base"]["loss"], scores["adapter"]["loss"]
    print(f"\n{name}: {meta['rows']} {meta['tokens']} loss {losses} seconds {seconds}")
