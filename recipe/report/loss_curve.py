"""The loss curve: a CSV file with a line for each point that the trainer logged.

The train stage writes the curve, and the register stage reads it.
"""

from pathlib import Path

from recipe.core.io import reading

CURVE = ("step", "loss", "learning_rate", "grad_norm", "mean_token_accuracy")


def curve_text(history: list[dict[str, float]]) -> str:
    """The entries in the trainer's log that have a loss, as CSV with six significant digits."""
    lines = [",".join(f"{entry[name]:.6g}" for name in CURVE) for entry in history if "loss" in entry]
    return "\n".join([",".join(CURVE), *lines]) + "\n"


def last_loss(history: list[dict[str, float]], logging_steps: int) -> float:
    """The mean loss over the last logging interval.

    The last point may cover fewer than `logging_steps` steps, or even a single step. If so, the mean also includes the
    steps of the previous point.
    """
    previous: dict[str, float] = {"step": 0, "loss": 0.0}
    *_, previous, last = [previous, *history]
    steps = last["step"] - previous["step"]
    if steps >= logging_steps or len(history) == 1:
        return last["loss"]
    return (steps * last["loss"] + logging_steps * previous["loss"]) / (steps + logging_steps)


def read_curve(path: Path) -> list[dict[str, float]]:
    """Read the points from a loss curve file."""
    with reading(path):
        header, *lines = path.read_text(encoding="utf-8").splitlines()
        return [dict(zip(header.split(","), map(float, line.split(",")), strict=True)) for line in lines]
