"""Read-only folders and other users' files: a stage ends with exit code 4 before its work, and names path and user."""

import importlib
import os
import shutil
import subprocess
import traceback

import pytest
from click.testing import CliRunner
from conftest import small_repository

from recipe.cli.commands import main
from recipe.cli.context import STAGES, paths
from recipe.cli.permissions import check_writable, written_by

NOBODY = 65534
# Loaded before the change of the user, because another user may not be able to read this Python's modules.
for module in ("cli.run_metadata", "cli.supervise", "core.disk", "planning.output_size", "verify.environment",
               "verify.integrity"):  # fmt: skip
    importlib.import_module(f"recipe.{module}")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can switch to another user or mount a folder")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A recipe with outputs of root, in a folder that every user can enter."""
    folder = small_repository(tmp_path / "repository")
    for output in (
        "data/raw",
        "data/prepared",
        "models/base",
        "models/adapter",
        "reports",
        "metrics",
        "mlflow",
        ".recipe",
    ):
        (folder / output).mkdir(parents=True)
    (folder / ".recipe" / "lock").touch()
    (folder / "mlflow" / "mlflow.db").touch()
    # pytest's own folders, also below one of a worker of xdist, which only their owner may enter
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == os.geteuid() and path.parts[:2] == tmp_path.parts[:2] and len(path.parts) > 2:
            path.chmod(0o755)
    monkeypatch.chdir(folder)
    return folder


def invoke(*command):
    result = CliRunner().invoke(main, list(command))
    return result.exit_code, result.output


def as_nobody(function, *arguments):
    """Call a function in a child process of user 65534, and return its result."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            text = repr(function(*arguments))
        except BaseException:  # noqa: BLE001 - the child must not return into pytest
            text = repr(traceback.format_exc())
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with os.fdopen(reader) as pipe:
        return eval(pipe.read())


def test_every_stage_checks_its_outputs_the_local_folder_and_the_store(folder):
    written = {stage: {path.as_posix() for path in written_by(paths(), stage, None)} for stage in STAGES[1:]}
    assert written["prepare"] == {"data/prepared", ".recipe"}
    assert written["train"] == {
        "models/adapter", "reports/training", "metrics/train.json", "metrics/loss.csv", ".recipe",
        str(folder / "mlflow"),
    }  # fmt: skip
    assert {path.as_posix() for path in written_by(paths(), "fetch", "model")} == {"models/base", ".recipe"}
    for missing in (None, ".recipe", "mlflow", "models", "data"):
        if missing:
            shutil.rmtree(missing)
        for stage in STAGES[1:]:
            check_writable(written_by(paths(), stage, None))


@needs_root
@pytest.mark.parametrize(
    ("command", "denied"),
    [("fetch data", "data/raw"), ("prepare", "data/prepared"), ("train", "models"), ("register", "models")],
)
def test_another_users_files_are_named_with_both_users(folder, command, denied):
    (folder / ".recipe").chmod(0o777)
    (folder / ".recipe" / "lock").chmod(0o666)
    (folder / "data").chmod(0o777)
    code, output = as_nobody(invoke, *command.split())
    assert code == 4 and output.count("\n") == 1, output
    assert output.startswith("error: ") and f"{denied} can't be written" in output, output
    assert f"by user nobody ({NOBODY}): it belongs to user root (0) (mode 755)" in output
    assert f"sudo chown -R {NOBODY} " in output


@needs_root
@pytest.mark.parametrize("locked", [".recipe/lock", "mlflow/mlflow.db"])
def test_another_users_lock_and_database_are_named(folder, locked):
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink() and (path.is_dir() or path.name in ("lock", "mlflow.db")):
            path.chmod(0o777)
    (folder / locked).chmod(0o644)
    code, output = as_nobody(invoke, "register")
    assert code == 4 and f"{locked} can't be written" in output, output


@needs_root
def test_files_that_can_not_be_read_are_named(folder):
    (folder / "params.yaml").chmod(0o600)
    code, output = as_nobody(invoke, "params")
    assert code == 4 and output.startswith("error: params.yaml can't be written or read by user nobody"), output


@needs_root
def test_a_read_only_file_system_is_named(folder):
    target = folder / "data" / "prepared"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", target], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"this machine does not allow mounts: {mounted.stderr.decode().strip()}")
    try:
        code, output = invoke("prepare")
    finally:
        subprocess.run(["umount", target], check=True)
    assert code == 4 and "data/prepared can't be written" in output and "read-only file system" in output, output
    assert invoke("prepare")[0] == 4  # data/raw has no manifest: the check passed
