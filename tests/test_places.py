"""Where the repository may be: in a git worktree, or unpacked below another repository, with spaces in its path."""

import sys

import pytest
from runs import run, stages_run

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
@pytest.mark.parametrize("place", [worktree, archive_below_another_repository])
def test_stages_run_and_the_origin_is_the_commit_of_this_repository_or_none(commit, tmp_path, place):
    folder, head = place(commit, tmp_path)
    assert stages_run(run(folder, "dvc", "repro", "prepare")) == ["fetch@data", "fetch@model", "prepare"]
    assert stages_run(run(folder, "dvc", "repro", "prepare")) == []
    tags = run(folder, sys.executable, "-c", LINEAGE)
    assert f"'git_commit': '{head}'" in tags if head else "git_commit" not in tags
    assert "'git_changed': 'no'" in tags if head else "git_changed" not in tags
