"""The pipeline as a user runs it: `dvc repro` in fresh clones, killed, with changes, and on real data."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import alpaca, edit, toy_rows, write_jsonl
from runs import ENVIRONMENT, children, run, stages_run

from demo.rows import CATEGORIES

pytestmark = pytest.mark.slow


def test_the_demo_learns_its_tasks_and_a_second_repro_runs_nothing(finished):
    scores = json.loads((finished / "metrics" / "evaluate.json").read_text())
    assert scores["base"]["exact_match"] <= 0.05 and scores["adapter"]["exact_match"] >= 0.50
    groups = json.loads((finished / "reports" / "evaluation" / "groups.json").read_text())
    assert set(groups["exact_match_by_category"]) == set(CATEGORIES)
    again = run(finished, "dvc", "repro")
    assert stages_run(again) == [] and "up to date" in again
    assert run(finished, "git", "status", "--porcelain", "--untracked-files=no") == ""
    assert "models:/recipe-demo@champion" in run(finished, "recipe", "summary")


@pytest.mark.long  # test_verify does the same with a smaller recipe
def test_the_demo_is_rebuilt_identically_after_sigkill_for_dvc(finished):
    """`recipe verify` in another folder with a longer path and a separate cache; SIGKILL only for `dvc`."""
    run(finished, "git", "add", "-A")
    # There is nothing to commit if dvc.lock is the committed one.
    run(finished, "git", "commit", "-q", "-m", "The run", check=False)
    process = subprocess.Popen(
        ["recipe", "verify"], cwd=finished, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not list(finished.glob(".recipe/verify/**/.recipe/checkpoints/*/checkpoint-100/complete.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    dvc = next(pid for pid in children(process.pid) if "dvc" in Path(f"/proc/{pid}/cmdline").read_text())
    descendants = children(dvc)
    assert descendants
    os.kill(dvc, signal.SIGKILL)
    assert process.wait(60) == 4
    while any(Path(f"/proc/{pid}").exists() for pid in descendants):
        assert time.monotonic() < deadline, descendants
        time.sleep(0.1)
    output = run(finished, "recipe", "verify")
    assert "resuming from checkpoint-" in output and "identical: the rebuild has the recorded bytes" in output


@pytest.fixture
def quick(finished, tiny_base, tmp_path):
    """A finished recipe that runs in seconds, in the presets of the finished root recipe."""
    write_jsonl(tmp_path / "rows" / "train.jsonl", toy_rows(80))
    write_jsonl(tmp_path / "rows" / "validation.jsonl", [alpaca(f"Held {n}", "x y") for n in range(6)])
    run(finished, "recipe", "new", "quick", "--data", tmp_path / "rows", "--model", tiny_base)
    folder = finished / "presets" / "quick"
    edit(folder, "max_generations: 450", "max_generations: 2")
    edit(folder, "max_new_tokens: 64", "max_new_tokens: 4")
    root_lock = (finished / "dvc.lock").read_bytes()
    assert len(stages_run(run(folder, "dvc", "repro"))) == 7
    assert (finished / "dvc.lock").read_bytes() == root_lock and (folder / "dvc.lock").is_file()
    assert stages_run(run(finished, "dvc", "repro")) == []
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def package(finished):
    """The code of the finished clone. Other tests use the clone too, so changes are undone."""
    folder = finished / "recipe"
    before = {path: path.read_bytes() for path in folder.rglob("*.py")}
    yield folder
    for path, content in before.items():
        if path.read_bytes() != content:
            path.write_bytes(content)
    run(finished, "git", "clean", "-fdq", "recipe")
    assert run(finished, "git", "status", "--porcelain", "recipe") == ""


@pytest.mark.long
def test_a_change_reruns_only_the_stages_that_depend_on_it(quick, package, tmp_path):
    def repro():
        return stages_run(run(quick, "dvc", "repro"))

    edit(quick, "  r: 16", "  r: 4")
    assert repro() == ["train", "evaluate", "register"]
    edit(quick, "max_length: 256", "max_length: 200")
    assert repro() == ["prepare", "analyze", "train", "evaluate", "register"]
    write_jsonl(tmp_path / "rows" / "train.jsonl", toy_rows(81))
    assert repro() == ["fetch@data", "prepare", "analyze", "train", "evaluate", "register"]
    # A comment changes in a file of analyze. Its outputs do not change, so no later stage runs.
    code = package / "analyze" / "scan.py"
    code.write_text(code.read_text() + "# A comment.\n")
    assert repro() == ["analyze"]
    for unlisted in ("cli/commands.py", "tracking/mlflow_run.py", "planning/plan.py"):
        (package / unlisted).write_text((package / unlisted).read_text() + "# A comment.\n")
    (package / "train" / "a stray file").write_text("x")
    assert repro() == []


def test_real_rows_run_through_all_stages_and_the_loss_decreases(real):
    scores = json.loads((real / "metrics" / "evaluate.json").read_text())
    assert scores["adapter"]["loss"] < scores["base"]["loss"] - 0.1
    meta = json.loads((real / "data" / "prepared" / "meta.json").read_text())
    notes = json.loads((real / ".recipe" / "notes.json").read_text())
    seconds = {stage: facts["stage_seconds"] for stage, facts in notes.items()}
    losses = scores["base"]["loss"], scores["adapter"]["loss"]
    print(f"\n{real.name}: {meta['rows']} {meta['tokens']} loss {losses} seconds {seconds}")


def test_an_experiment_is_a_child_run_in_the_store_of_the_repository(swept):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{swept / 'mlflow' / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("recipe-demo").experiment_id])
    [parent] = [item for item in runs if "sweep" in item.data.tags]
    [child] = [item for item in runs if "mlflow.parentRunId" in item.data.tags]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags["dvc_experiment"] == "rank-4" and child.data.params["lora.r"] == "4"
    assert parent.data.tags["sweep"] == run(swept, "git", "rev-parse", "HEAD").strip()
    # DVC and MLflow report the same numbers.
    rows = list(csv.DictReader(io.StringIO(run(swept, "dvc", "exp", "show", "--csv"))))
    [row] = [row for row in rows if row["Experiment"] == "rank-4"]
    # DVC prefixes a name with its file ("metrics/evaluate.json:adapter.loss") if a preset has the same name.
    shown = {name.split(":")[-1]: value for name, value in row.items() if not name.startswith("presets/")}
    assert float(shown["adapter.loss"]) == child.data.metrics["eval/adapter/loss"]
    assert shown["lora.r"] == "4"
