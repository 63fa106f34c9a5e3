"""Times `recipe --help`, `dvc repro` with nothing to do, and `recipe train` until it completes its first step.

    python -m bench.pipeline        in a repository whose pipeline has been run (`make demo`)

Training runs in a clone with its own MLflow store, and is killed after its first step. The measured time includes this
step.
"""

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from bench.train import ROOT

OUTPUTS = ("data/raw", "data/prepared", "models/base")


def timed(command: list[str], folder: Path, expected: str) -> float:
    """Return the seconds that a command takes, or exit if it fails or its output does not match `expected`."""
    started = time.monotonic()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    if done.returncode != 0 or not re.search(expected, done.stdout):
        sys.exit(f"{done.stdout[-800:]}{done.stderr[-800:]}\nerror: {' '.join(command)} did not print {expected!r}.")
    return seconds


def to_first_step(clone: Path) -> float:
    """Return the seconds from the start of `recipe train` until it prints the line for step 1."""
    started = time.monotonic()
    command = [sys.executable, "-P", str(ROOT / "recipe/__main__.py"), "train"]
    process = subprocess.Popen(command, cwd=clone, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("step 1/"):
                return time.monotonic() - started
    finally:
        # The command trains in a child process, which would save a checkpoint if only its parent were killed.
        started_by_it = psutil.Process(process.pid).children(recursive=True)
        for each in (*started_by_it, process):
            each.kill()
        psutil.wait_procs(started_by_it)
        process.wait()
        shutil.rmtree(clone / ".recipe", ignore_errors=True)
    sys.exit("error: `recipe train` exited before it completed its first step. Run `recipe train` to see why.")


def clone_of(folder: Path, into: Path) -> Path:
    """Create a clone that contains the stage outputs that training reads, and return the clone's path.

    Training in the clone logs every step.
    """
    subprocess.run(["git", "clone", "-q", folder, into], check=True)
    for name in OUTPUTS:
        shutil.copytree(folder / name, into / name, dirs_exist_ok=True)
    params = into / "params.yaml"
    text = params.read_text()
    params.write_text(re.sub(r"logging_steps: \d+", "logging_steps: 1", text))
    return into


def main() -> None:
    """Time the commands and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    missing = [name for name in OUTPUTS if not (ROOT / name).exists()]
    if missing:
        sys.exit(f"error: missing outputs: {', '.join(missing)}. Run the pipeline first: make demo")
    os.environ |= {"DVC_NO_ANALYTICS": "1", "PYTHONHASHSEED": "0"}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        clone = clone_of(ROOT, Path(name) / "clone")
        commands: list[tuple[str, Callable[[], float]]] = [
            ("`recipe --help`", lambda: timed(["recipe", "--help"], ROOT, "Usage: ")),
            ("`dvc repro` with nothing to do", lambda: timed(["dvc", "repro"], ROOT, "up to date")),
            ("`recipe train` to its first step", lambda: to_first_step(clone)),
        ]
        print("| command | seconds, median | fastest | slowest |\n|---|---|---|---|")
        for title, run in commands:
            seconds = [run() for _ in range(options.rounds)]
            print(
                f"| {title} | {statistics.median(seconds):.2f} | {min(seconds):.2f} | {max(seconds):.2f} |", flush=True
            )


if __name__ == "__main__":
    main()
