"""Compares the demo's training speed with the portable CPU kernels and with torch's own.

    python -m bench.kernels                  in the repository root, after `dvc repro prepare`
    python -m bench.kernels --rounds 5 --steps 54

Each round runs both arms in processes of their own, in alternating order. `torch` uses MKL with the instruction set
AVX2, which AMD processors ignore; `portable` uses recipe/model/portable_kernels.py. The table shows the median and the
range of the seconds for all steps, without loading.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import click

ARMS = ("torch", "portable")


def train_steps(arm: str, steps: int) -> float:
    """Train the demo for a number of steps in this process, and return the seconds."""
    from recipe.core.environment import configure_libraries
    from recipe.model.processor import be_deterministic, pin_processor

    configure_libraries(network=False)
    pin_processor()
    if arm == "torch":
        os.environ["MKL_CBWR"] = "AVX2"
    import time

    import torch

    from recipe.cli import context
    from recipe.core.io import read_json
    from recipe.train.interrupt import Stop
    from recipe.train.progress import Progress
    from recipe.train.stage import make_trainer

    params, paths = context.params(), context.paths()
    settings = params["train"].model_copy(update={"activation_checkpointing": "off"})
    if arm == "torch":
        torch.set_num_threads(settings.num_threads)
        torch.use_deterministic_algorithms(True)
    else:
        be_deterministic(settings.num_threads)
    manifest, meta = read_json(paths.base / "manifest.json"), read_json(paths.prepared / "meta.json")
    progress = Progress(lambda values, step: None, 1.0, Stop(), 600.0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(params["lora"], settings, paths, manifest, meta, Path(folder), progress)
        trainer.args.max_steps = steps
        started = time.perf_counter()
        trainer.train()
        return time.perf_counter() - started


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Number of runs of each arm.")
@click.option("--steps", default=54, show_default=True, help="Number of optimizer steps of a run.")
@click.option("--arm", type=click.Choice(ARMS), hidden=True)
def main(rounds: int, steps: int, arm: str | None) -> None:
    """Measure both arms in alternating order, and print a table."""
    if arm:
        click.echo(f"seconds {train_steps(arm, steps)}")
        return
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    for number in range(rounds):
        for name in ARMS if number % 2 == 0 else ARMS[::-1]:
            command = [sys.executable, "-m", "bench.kernels", "--arm", name, "--steps", str(steps)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds[name].append(float(done.stdout.split("seconds ")[-1]))
    click.echo("| kernels | median | range |\n|---|---|---|")
    for name, values in seconds.items():
        click.echo(f"| {name} | {statistics.median(values):.2f} s | {min(values):.2f} to {max(values):.2f} s |")
    ratio = statistics.median(seconds["portable"]) / statistics.median(seconds["torch"])
    click.echo(f"\nthe portable kernels take {ratio:.0%} of the time of torch's own kernels.")


if __name__ == "__main__":
    main()
