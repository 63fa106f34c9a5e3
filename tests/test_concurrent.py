"""Two `dvc repro` in one folder at once: one works, the other names the holder and ends within 5 seconds."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import RECIPE, edit, toy_rows, write_jsonl
from runs import ENVIRONMENT, children, run

pytestmark = pytest.mark.slow
SECONDS = 5  # on an idle machine, where DVC starts in a second


@pytest.fixture(scope="module")
def folder(commit, tiny_base, tmp_path_factory):
    """A recipe in a repository of its own, whose stages up to prepare have run. Training takes minutes."""
    place = tmp_path_factory.mktemp("concurrent")
    write_jsonl(place / "rows" / "train.jsonl", toy_rows(400))
    write_jsonl(place / "rows" / "validation.jsonl", toy_rows(402)[400:])
    run(place, "git", "clone", "-q", commit, place / "repository")
    run(place / "repository", *RECIPE, "new", "quick", "--data", "../rows", "--model", tiny_base)
    folder = place / "repository" / "presets" / "quick"
    edit(folder, "num_epochs: 1 ", "num_epochs: 60 ")
    run(folder, "dvc", "repro", "prepare")
    return folder


def start(folder, *arguments):
    log = folder.parent / "first.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            ["dvc", "repro", *arguments], cwd=folder, env=ENVIRONMENT, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    return process, log


def wait_for(condition, process, log):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.05)


def second(folder, *command):
    """Run a command while the first one runs; returns its exit code, output and duration."""
    started = time.monotonic()
    done = subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    return done.returncode, done.stdout, time.monotonic() - started


def limit(folder):
    """SECONDS on an idle machine, more the longer DVC takes to start here: beside a training it waits for a core."""
    started = time.monotonic()
    run(folder, "dvc", "root")
    return SECONDS + 5 * (time.monotonic() - started)


def stop(process):
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)


def trainer(process):
    """The process that trains: the child of the one that DVC started."""
    return [pid for pid in children(process.pid) if "train" in command_line(pid)][-1]


def command_line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_a_second_repro_during_training_names_the_holder(folder):
    process, log = start(folder, "-s", "train")
    try:
        wait_for(lambda: "step 1" in log.read_text(), process, log)
        code, output, seconds = second(folder, "dvc", "repro")
        assert code and seconds < limit(folder) and str(process.pid) in output, (code, seconds, output)
        pid = trainer(process)
        code, output, seconds = second(folder, *RECIPE, "train")
        assert code == 4 and f"a stage is already running here (process {pid} holds" in output, output
        assert seconds < limit(folder)
        assert process.poll() is None
    finally:
        stop(process)


@pytest.mark.long
def test_a_second_repro_while_a_stage_outlives_a_killed_dvc_names_the_stage(folder):
    process, log = start(folder, "-s", "train")
    try:
        wait_for(lambda: "step 1" in log.read_text(), process, log)
        pid = trainer(process)
        os.kill(pid, signal.SIGSTOP)  # the stage does not end yet
        os.kill(process.pid, signal.SIGKILL)
        process.wait(30)
        code, output, seconds = second(folder, "dvc", "repro", "-s", "train")
        assert code and f"process {pid}" in output and seconds < 3 * limit(folder), (code, seconds, output)
        os.kill(pid, signal.SIGCONT)
        deadline = time.monotonic() + 30
        while "train" in command_line(pid):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        if process.poll() is None:
            stop(process)
    # The locks of the dead processes do not block the next run, which resumes.
    process, log = start(folder, "-s", "train")
    try:
        wait_for(lambda: "resuming from checkpoint-" in log.read_text(), process, log)
    finally:
        stop(process)
