"""Finished recipes that tests share: the demo, and a recipe per real dataset."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from recipe.core.io import sha256_file

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t", "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@t",
}  # fmt: skip
ENVIRONMENT.pop("MLFLOW_TRACKING_URI", None)
ENVIRONMENT["PYTHONHASHSEED"] = "0"  # as in the Makefile: fixes the order of the stages in a new dvc.lock
ENVIRONMENT["SHELL"] = (
    "/bin/sh"  # DVC runs stages in the user's shell; unlike bash, dash stays alive between DVC and the stage
)


def run(folder, *command, check=True):
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stdout[-5000:]
    return done.stdout


def stages_run(output):
    return re.findall(r"Running stage '([\w@]+)'", output)


def children(pid):
    """The process ids of all descendants of `pid`."""
    pids = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid:
            pids += [int(entry.name), *children(int(entry.name))]
    return pids


@contextmanager
def mlflow_server(database, artifacts):
    """Run a real MLflow server on a store; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
         "--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", str(artifacts)],
        cwd=Path(database).parent, env={**ENVIRONMENT, "MLFLOW_DISABLE_TELEMETRY": "true"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 90
    try:
        while True:
            assert process.poll() is None and time.monotonic() < deadline, "the MLflow server did not start"
            try:
                with urllib.request.urlopen(f"{address}/health", timeout=2):
                    break
            except OSError:
                time.sleep(0.1)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.fixture(scope="session")
def commit(tmp_path_factory):
    """A repository with one commit: the tracked and untracked files here that git does not ignore, without dvc.lock."""
    folder = tmp_path_factory.mktemp("origin") / "recipe"
    names = run(ROOT, "git", "ls-files", "-co", "--exclude-standard", "-z").split("\0")
    for name in filter(None, names):
        if (ROOT / name).exists() and not name.endswith("dvc.lock") and not name.startswith(("metrics/", "presets/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    run(folder, "git", "init", "-q", "-b", "main")
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-q", "-m", "one")
    return folder


@pytest.fixture(scope="session")
def finished(commit, tmp_path_factory):
    """A clone in which `dvc repro` finished. If RECIPE_FINISHED names such a clone of this commit, it is used."""
    if os.environ.get("RECIPE_FINISHED"):
        return Path(os.environ["RECIPE_FINISHED"])
    folder = tmp_path_factory.mktemp("a") / "r"
    run(folder.parent, "git", "clone", "-q", commit, folder)
    run(folder, "dvc", "repro")
    return folder


REAL = {  # sequence length, number of rows, epochs. One epoch of all rows of GSM8K takes 12 minutes (docs/RESULTS.md).
    "alpaca_en_999.json": ("max_length: 1024", 999, 0.4),
    "gsm8k_train.json": ("max_length: 512", 1500, 1),
}


@pytest.fixture(
    scope="session",
    params=["alpaca_en_999.json", pytest.param("gsm8k_train.json", marks=pytest.mark.long)],
)
def real(request, finished, tmp_path_factory):
    """A finished recipe for a real dataset, in the presets of the finished demo."""
    from conftest import SHARED, edit

    name = request.param
    if not (SHARED / name).is_file():
        pytest.skip(f"the real datasets are not at {SHARED}")
    max_length, num_rows, num_epochs = REAL[name]
    rows = tmp_path_factory.mktemp("rows") / name
    rows.write_text(json.dumps(json.loads((SHARED / name).read_text())[:num_rows]))
    recipe = f"real-{name.split('_')[0]}"
    if (finished / "presets" / recipe).is_dir():  # pytest sets a parametrized fixture up again when tests alternate
        return finished / "presets" / recipe
    run(finished, "recipe", "new", recipe, "--data", rows)
    folder = finished / "presets" / recipe
    edit(folder, "sha256: null ", f"sha256: {sha256_file(rows)} ")
    edit(folder, "max_length: 256", max_length)
    edit(folder, "num_epochs: 1 ", f"num_epochs: {num_epochs} ")
    edit(folder, "max_generations: 450", "max_generations: 8")
    # The second recipe does not run fetch@model: DVC's run cache has its result.
    ran = set(stages_run(run(folder, "dvc", "repro")))
    assert ran - {"fetch@model"} == {"fetch@data", "prepare", "analyze", "train", "evaluate", "register"}
    return folder


@pytest.fixture(scope="session")
def swept(finished):
    """The finished demo after `dvc exp run` with another rank on a tenth of the data. Its files are unchanged."""
    before = run(finished, "git", "status", "--porcelain")
    changes = ("lora.r=4", "train.num_epochs=0.1", "evaluate.max_generations=20")
    run(finished, "dvc", "exp", "run", "--temp", "-n", "rank-4", *(word for item in changes for word in ("-S", item)))
    assert run(finished, "git", "status", "--porcelain") == before
    return finished
