"""Writes and reads the loss curve, a CSV file with one line for each trainer log entry that contains a loss.

The train stage writes the curve, and the register stage reads it.
"""

from pathlib import Path

from recipe.core.io import reading

CURVE = ("step", "loss", "learning_rate", "grad_norm", "mean_token_accuracy")


def curve_text(history: list[dict[str, float]]) -> str:
    """Return the trainer log entries that contain a loss as CSV with six significant digits."""
    lines = [",".join(f"{entry[name]:.6g}" for name in CURVE) for entry in history if "loss" in entry]
    return "\n".join([",".join(CURVE), *lines]) + "\n"


def last_loss(history: list[dict[str, float]], logging_steps: int) -> float:
    """Return the mean loss of the last training steps.

    The mean covers the steps of the last log entry. If the last entry covers fewer than `logging_steps` steps, the mean
    also covers the steps of the previous entry.
    """
    previous: dict[str, float] = {"step": 0, "loss": 0.0}
    *_, previous, last = [previous, *history]
    steps = last["step"] - previous["step"]
    if steps >= logging_steps or len(history) == 1:
        return last["loss"]
    return (steps * last["loss"] + logging_steps * previous["loss"]) / (steps + logging_steps)


def read_curve(path: Path) -> list[dict[str, float]]:
    """Read the log entries from a loss curve file."""
    with reading(path):
        header, *lines = path.read_text(encoding="utf-8").splitlines()
        return [dict(zip(header.split(","), map(float, line.split(",")), strict=True)) for line in lines]
