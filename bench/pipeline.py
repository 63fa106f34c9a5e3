"""How long the commands take around the work itself: `recipe --help`, a `dvc repro` with nothing to do, the way to
the first training step.

    python -m bench.pipeline        in a repository whose pipeline has run (`make demo`)

Training starts in a clone with a store of its own, and is ended at its first step; the step's own time is within.
"""

import argparse
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.train import ROOT

MADE = ("data/raw", "data/prepared", "models/base")


def timed(command: list[str], folder: Path, expected: str) -> float:
    """Seconds of a command that ends well and says what is expected of it."""
    started = time.monotonic()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    if done.returncode != 0 or not re.search(expected, done.stdout):
        sys.exit(f"{done.stdout[-800:]}{done.stderr[-800:]}\nerror: {' '.join(command)} did not say {expected!r}.")
    return seconds


def to_first_step(clone: Path) -> float:
    """Seconds from `recipe train` to its line about step 1."""
    started = time.monotonic()
    command = [sys.executable, "-P", str(ROOT / "recipe/__main__.py"), "train"]
    running = subprocess.Popen(command, cwd=clone, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert running.stdout is not None
    try:
        for line in running.stdout:
            if line.startswith("step 1/"):
                return time.monotonic() - started
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
        shutil.rmtree(clone / ".recipe", ignore_errors=True)
    sys.exit("error: `recipe train` took no step; run it by hand to see why.")


def clone_of(folder: Path, into: Path) -> Path:
    """A clone with the stages' outputs that training reads, and a point of the curve at every step."""
    subprocess.run(["git", "clone", "-q", folder, into], check=True)
    for name in MADE:
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
    lacking = [name for name in MADE if not (ROOT / name).exists()]
    if lacking:
        sys.exit(f"error: {', '.join(lacking)} is missing. Run the pipeline first: make demo")
    os.environ |= {"DVC_NO_ANALYTICS": "1", "PYTHONHASHSEED": "0"}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        clone = clone_of(ROOT, Path(name) / "clone")
        measured: list[tuple[str, Callable[[], float]]] = [
            ("`recipe --help`", lambda: timed(["recipe", "--help"], ROOT, "Usage: ")),
            ("`dvc repro` with nothing to do", lambda: timed(["dvc", "repro"], ROOT, "up to date")),
            ("`recipe train` to its first step", lambda: to_first_step(clone)),
        ]
        print("| command | seconds, median | fastest | slowest |\n|---|---|---|---|")
        for title, run in measured:
            seconds = [run() for _ in range(options.rounds)]
            print(
                f"| {title} | {statistics.median(seconds):.2f} | {min(seconds):.2f} | {max(seconds):.2f} |", flush=True
            )


if __name__ == "__main__":
    main()
