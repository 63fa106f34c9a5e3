"""The loss curve: a CSV with a line for each point that the trainer logged. Written by train, read by register."""

from pathlib import Path

CURVE = ("step", "loss", "learning_rate", "grad_norm", "mean_token_accuracy")


def curve_text(history: list[dict[str, float]]) -> str:
    """The points of the trainer's log that hold a loss, to six digits."""
    lines = [",".join(f"{entry[name]:.6g}" for name in CURVE) for entry in history if "loss" in entry]
    return "\n".join([",".join(CURVE), *lines]) + "\n"


def last_loss(history: list[dict[str, float]], logging_steps: int) -> float:
    """The mean loss of the last point's steps; where it spans fewer than `logging_steps`, of those before it too.

    The curve's last point may be a single step's.
    """
    before: dict[str, float] = {"step": 0, "loss": 0.0}
    *_, before, last = [before, *history]
    steps = last["step"] - before["step"]
    if steps >= logging_steps or len(history) == 1:
        return last["loss"]
    return (steps * last["loss"] + logging_steps * before["loss"]) / (steps + logging_steps)


def read_curve(path: Path) -> list[dict[str, float]]:
    """The points of a curve's file."""
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    return [dict(zip(header.split(","), map(float, line.split(",")), strict=True)) for line in lines]
