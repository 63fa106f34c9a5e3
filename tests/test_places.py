"""Where the repository may be: in a git worktree, or unpacked below another repository, with spaces in its path."""

import os
import sys
from pathlib import Path

import pytest
from runs import run, stages_run

from recipe.core.paths import make_command

LINEAGE = "from pathlib import Path; from recipe.tracking.lineage import lineage; print(lineage(Path()))"


def worktree(commit, tmp_path):
    folder = tmp_path / "my worktrees" / "recipe"
    run(tmp_path, "git", "clone", "-q", commit, tmp_path / "clone")
    run(tmp_path / "clone", "git", "worktree", "add", "-q", folder)
    return folder, run(commit, "git", "rev-parse", "HEAD").strip()


def archive_below_another_repository(commit, tmp_path):
    outer = tmp_path / "my models"
    run(tmp_path, "git", "init", "-q", outer)
    (outer / "notes.txt").write_text("x")
    run(outer, "git", "add", "-A")
    run(outer, "git", "commit", "-q", "-m", "another project")
    folder = outer / "recipe"
    folder.mkdir()
    run(commit, "git", "archive", "-o", tmp_path / "recipe.tar", "HEAD")
    run(folder, "tar", "-xf", tmp_path / "recipe.tar")
    return folder, None


@pytest.mark.slow
@pytest.mark.parametrize("place", [worktree, pytest.param(archive_below_another_repository, marks=pytest.mark.long)])
def test_stages_run_and_the_origin_is_the_commit_of_this_repository_or_none(commit, tmp_path, place):
    folder, head = place(commit, tmp_path)
    assert stages_run(run(folder, "dvc", "repro", "prepare")) == ["fetch@data", "fetch@model", "prepare"]
    assert stages_run(run(folder, "dvc", "repro", "prepare")) == []
    tags = run(folder, sys.executable, "-c", LINEAGE)
    assert f"'git_commit': '{head}'" in tags if head else "git_commit" not in tags
    assert "'git_changed': 'no'" in tags if head else "git_changed" not in tags


def test_a_make_target_can_be_run_from_any_recipe_folder(tmp_path, monkeypatch):
    (tmp_path / "requirements").mkdir()
    (tmp_path / "presets" / "mine").mkdir(parents=True)
    assert make_command("mlflow-ui", tmp_path) == "make mlflow-ui"
    assert make_command("mlflow-ui", tmp_path / "presets" / "mine") == "make -C ../.. mlflow-ui"
    monkeypatch.chdir(tmp_path / "presets")
    assert make_command("mlflow-ui", Path("mine")) == "make -C ../.. mlflow-ui"


def test_variables_that_mlflow_sets_for_its_child_processes_are_removed_without_a_note(monkeypatch):
    from recipe.tracking.settings import prepare_environment

    for name in [name for name in os.environ if "MLFLOW_" in name]:
        monkeypatch.setenv(name, os.environ[name])  # restored after the test
    monkeypatch.setenv("_MLFLOW_TELEMETRY_SESSION_ID", "1")
    monkeypatch.setenv("MLFLOW_RUN_ID", "2")
    removed = prepare_environment()
    assert "MLFLOW_RUN_ID" in removed and "_MLFLOW_TELEMETRY_SESSION_ID" not in removed
    assert "_MLFLOW_TELEMETRY_SESSION_ID" not in os.environ
