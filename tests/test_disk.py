"""A full disk, and a limit on file sizes, in each stage: exit code 4 with sizes, nothing lost, and a rerun succeeds."""

import errno
import os
import resource
import shutil
import sqlite3
import subprocess
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from conftest import edit, small_repository

from recipe.cli.commands import main
from recipe.core.disk import disk_space, space_problem
from recipe.core.errors import MachineError, TrackingError
from recipe.core.io import sha256_tree

RUNS = ["fetch data", "fetch model", "prepare", "analyze", "train", "evaluate", "register"]
LEFT_BYTES = 4096  # fewer than any stage writes
LIMIT_BYTES = 2_000  # smaller than the largest file of any stage


def invoke(command):
    result = CliRunner().invoke(main, command.split(), catch_exceptions=True)
    if not isinstance(result.exception, SystemExit | None):
        raise result.exception
    return result


@contextmanager
def file_size_limit(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A disk of 64 MB of its own."""
    folder = tmp_path_factory.mktemp("disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"only root can mount a small disk: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="module")
def folder(disk, tiny_base):
    """A recipe on the small disk; no stage has run."""
    before = dict(os.environ)
    with pytest.MonkeyPatch.context() as patch:
        repository = small_repository(disk / "repository")
        patch.chdir(repository)
        assert not invoke(f"new quick --data rows --model {tiny_base}").exit_code
        quick = repository / "presets" / "quick"
        for old, new in (("max_generations: 450", "max_generations: 2"), ("max_new_tokens: 64", "max_new_tokens: 2")):
            edit(quick, old, new)
        (disk / "tmp").mkdir()
        patch.chdir(quick)
        patch.setenv("TMPDIR", str(disk / "tmp"))
        patch.setattr("tempfile.tempdir", None)
        yield quick
    os.environ.clear()
    os.environ.update(before)


@contextmanager
def full(disk):
    """Fill the disk, except for LEFT_BYTES."""
    filler = disk / "filler"
    try:
        with filler.open("wb") as file:
            size = shutil.disk_usage(disk).free - LEFT_BYTES
            os.posix_fallocate(file.fileno(), 0, size)
        yield
    finally:
        filler.unlink()


def state(folder):
    """{file: sha256} of everything in the recipe folder but notes and locks."""
    return {
        str(path.relative_to(folder)): sha256_tree(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent.name != ".recipe" and "__pycache__" not in path.parts
    }


@pytest.mark.slow
@pytest.mark.parametrize("command", RUNS)
def test_a_full_disk_stops_a_stage_with_sizes_and_nothing_is_lost(disk, folder, monkeypatch, command):
    """The stages run in order. Each one fails three times, in three ways, and then succeeds."""
    before = state(folder)
    with full(disk):
        result = invoke(command)  # the check before work starts, where a stage writes more than is free
        assert result.exit_code == 4, result.output
        assert ("free" in result.output and result.output.count("\n") <= 2) or command == "train", result.output
        assert state(folder) == before
        # Another process fills the disk after the check.
        monkeypatch.setattr(
            "recipe.core.disk.shutil", SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=10**12))
        )
        result = invoke(command)
        assert result.exit_code == 4 and "can't be written, because its disk has only" in result.output, result.output
        assert state(folder) == before
    monkeypatch.undo()
    with file_size_limit(LIMIT_BYTES):
        result = invoke(command)
    assert result.exit_code == 4, result.output
    assert "may have at most 2.0 kB. Raise the limit (`ulimit -f`)" in result.output, result.output
    assert state(folder) == before
    result = invoke(command)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    "fail",
    [
        lambda path: torch.save({"x": torch.zeros(100_000)}, path / "a.pt"),
        lambda path: __import__("safetensors.torch").torch.save_file(
            {"x": torch.zeros(100_000)}, path / "a.safetensors"
        ),
        lambda path: (path / "a.txt").write_text("x" * 100_000),
        lambda path: sqlite3.connect(path / "a.db").executescript(
            f"PRAGMA max_page_count = 3; CREATE TABLE t (x); INSERT INTO t VALUES ('{'x' * 100_000}')"
        ),
    ],
    ids=["torch", "safetensors", "python", "sqlite"],
)
def test_each_librarys_error_is_recognized(tmp_path, fail):
    with file_size_limit(50_000), pytest.raises(MachineError) as error, disk_space(tmp_path, 1000, "The stage"):
        fail(tmp_path)
    assert "can't be written" in str(error.value) and "1.0 kB" in str(error.value)


def test_too_little_space_is_found_before_work_starts(tmp_path):
    message = r"The stage needs about 5\.00 TB on the disk of .*, but only .* is free"
    with pytest.raises(MachineError, match=message), disk_space(tmp_path, 5 * 10**12, "The stage"):
        raise AssertionError


def test_a_quota_is_named_and_errors_within_other_errors_are_found(tmp_path):
    quota = OSError(errno.EDQUOT, "Disk quota exceeded", str(tmp_path / "file"))
    assert "file can't be written, because your disk quota is used up" in space_problem(quota, Path())
    with pytest.raises(MachineError, match="its disk has only"), disk_space(tmp_path, 0, "The stage"):
        try:
            raise sqlite3.OperationalError("database or disk is full")
        except sqlite3.OperationalError:
            raise TrackingError("MLflow failed") from None


@pytest.mark.parametrize("error", [ValueError("x"), OSError(errno.ENOENT, "No such file", "x"), RuntimeError("y")])
def test_other_errors_stay_as_they_are(tmp_path, error):
    with pytest.raises(type(error)) as raised, disk_space(tmp_path, 0, "The stage"):
        raise error
    assert raised.value is error
