"""SIGKILL at random moments of training, also while a checkpoint or the adapter is written: the bytes are the same."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time

import pytest
from conftest import RECIPE, edit, small_repository
from runs import ENVIRONMENT, children

from recipe.core.io import sha256_tree

SAVE_STEPS = 5
OUTPUTS = ("models/adapter", "metrics/train.json", "metrics/loss.csv", "reports/training")


@pytest.fixture(scope="module")
def recipe(tiny_base, tmp_path_factory):
    """A recipe of 120 steps, ready to train, and the sha256 of each output and the seconds of a complete training."""
    repository = small_repository(tmp_path_factory.mktemp("kill") / "repository")

    def command(folder, *words):
        subprocess.run([*RECIPE, *words], cwd=folder, env=ENVIRONMENT, check=True, capture_output=True)

    command(repository, "new", "quick", "--data", "rows", "--model", tiny_base)
    folder = repository / "presets" / "quick"
    for old, new in (
        ("num_epochs: 1 ", "num_epochs: 24 "), ("logging_steps: 10", "logging_steps: 3"),
        ("save_steps: 100", f"save_steps: {SAVE_STEPS}"), ("global_batch_size: 4", "global_batch_size: 2"),
    ):  # fmt: skip
        edit(folder, old, new)
    for words in (["fetch", "data"], ["fetch", "model"], ["prepare"]):
        command(folder, *words)
    command(folder, "train")
    seconds = json.loads((folder / ".recipe" / "notes.json").read_text())["train"]["seconds"]
    return folder, {name: sha256_tree(folder / name) for name in OUTPUTS}, seconds


def checkpoints(folder):
    return max([int(path.name.split("-")[1]) for path in folder.glob(".recipe/checkpoints/*/checkpoint-*")], default=0)


def written_steps(folder):
    """The last step of the newest complete checkpoint, from its own file."""
    step = checkpoints(folder)
    return step if not step else json.loads(
        next(folder.glob(f".recipe/checkpoints/*/checkpoint-{step}/trainer_state.json")).read_text()
    )["global_step"]  # fmt: skip


# When to kill: after a random time, or as soon as a folder that exists only while something is written appears.
MOMENTS = {
    "training": lambda folder, after: after <= 0,
    "checkpoint": lambda folder, after: after <= 0 and any(folder.glob(".recipe/checkpoints/*/saving/checkpoint-*")),
    "adapter": lambda folder, after: any(folder.glob("models/.adapter.*.tmp")),
}
KILLS = {"training": 12, "checkpoint": 5, "adapter": 3}


def train_and_kill(folder, moment, rng, seconds):
    """Start training and kill it; returns whether it was killed in that moment, and the last step that it printed."""
    process = subprocess.Popen(
        [*RECIPE, "train"], cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith(("step ", "resuming")):
            break
    pids = children(process.pid)  # looking for them takes longer than the adapter is written
    at = time.monotonic() + rng.uniform(0, seconds)
    while process.poll() is None and not MOMENTS[moment](folder, at - time.monotonic()):
        time.sleep(0.0005)
    if moment == "checkpoint":
        time.sleep(rng.uniform(0, 0.02))
    killed = process.poll() is None
    for pid in pids if killed else []:
        os.kill(pid, signal.SIGKILL)
    rest, _ = process.communicate(timeout=30)
    return killed, max(map(int, re.findall(r"^step (\d+)/", line + rest, re.M)), default=0)


@pytest.mark.long
def test_twenty_killed_runs_end_in_the_same_bytes(recipe):
    folder, expected, seconds = recipe
    rng = random.Random(5)
    done = []
    for number, moment in enumerate(moment for moment, count in KILLS.items() for _ in range(count)):
        for name in OUTPUTS:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        killed, reached = train_and_kill(folder, moment, rng, 0.5 * seconds)
        assert killed, f"{moment} {number}: training ended before the kill"
        if moment == "adapter":
            assert not (folder / "models" / "adapter").exists()
        last = written_steps(folder)
        assert reached - last <= SAVE_STEPS + 3, (moment, number, reached, last)  # the log is 3 steps apart
        again = subprocess.run(
            [*RECIPE, "train"], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False
        )
        assert again.returncode == 0, again.stdout + again.stderr
        assert ("resuming from checkpoint-" in again.stdout) == (last > 0)
        assert {name: sha256_tree(folder / name) for name in OUTPUTS} == expected, (moment, number)
        assert not list(folder.glob(".recipe/checkpoints/*/*")) and not list(folder.glob("models/.adapter.*"))
        done.append(f"{moment} after step {reached}, resumed from {last}")
    print("\n".join(done))
    assert len(done) == sum(KILLS.values()) == 20
