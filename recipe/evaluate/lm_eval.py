"""Runs the lm-evaluation-harness tasks listed in `evaluate.tasks` on a loaded model.

    tasks = load_tasks(["hellaswag", "tasks/mine.yaml"])           # raises an error if a task can't be loaded
    scores = run_tasks(tasks, model, tokenizer)                    # {"hellaswag": {"acc": 0.28, "acc_stderr": 0.005}}

The harness is an optional dependency with a separate lock file. A built-in task fetches the current version of its rows
from the Hub, so the scores may change over time. A task in a custom YAML file can use local rows.
"""

import difflib
import importlib.util
import io
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from recipe.core.errors import DataError, MachineError, ParamsError
from recipe.core.format import first_line

LOCK = "requirements/tasks.lock"
INSTALL = f".venv/bin/python -m pip install --no-deps --require-hashes -r {LOCK}"
BATCH_ROWS = 8
SEED = 0
RESAMPLES = 1000  # number of bootstrap resamples for standard errors without a closed-form formula


def load_tasks(names: Sequence[str]) -> dict[str, Any]:
    """Load the tasks, fetch their rows, and return the tasks by name.

    Raises MachineError if the harness is not installed, or if a task or its rows can't be loaded. Raises ParamsError if
    a task does not exist or is not supported. Raises DataError if a YAML file is not a valid task.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise MachineError(
            f"evaluate.tasks lists {', '.join(names)}, but lm-evaluation-harness is not installed. To install it, "
            f"run this command from the repository root: {INSTALL}"
        )
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager()
    for name in names:
        if name.endswith(".yaml"):
            if not Path(name).is_file():
                raise ParamsError(
                    f"evaluate.tasks: file {name} does not exist. Paths are relative to the recipe folder."
                )
        elif name not in manager.all_tasks:
            similar = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f" Did you mean {' or '.join(similar)}?" if similar else ""
            raise ParamsError(
                f"evaluate.tasks: lm-evaluation-harness has no task {name}.{hint} "
                "Run `lm_eval ls tasks` to list all tasks."
            )
    tasks: dict[str, Any] = {}
    for name in names:
        try:
            with _quiet():
                tasks |= manager.load([name])["tasks"]
        except OSError as error:  # errors from reading files and from the Hub client are OSErrors
            raise MachineError(f"evaluate.tasks: can't load the rows of {name}: {first_line(error, 300)}") from None
        except ImportError as error:
            raise MachineError(
                f"evaluate.tasks: {name} needs a package that is not installed: {first_line(error, 300)}"
            ) from None
        except Exception as error:  # noqa: BLE001 - loading a task may raise any exception
            reason = f"{type(error).__name__}: {first_line(error, 300)}"
            if name.endswith(".yaml"):
                raise DataError(f"evaluate.tasks: {name} is not a valid task: {reason}") from None
            raise MachineError(f"evaluate.tasks: can't load {name}: {reason}") from None
    for name, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise ParamsError(
                f"evaluate.tasks: {name} executes code that the model generates, which is not supported. "
                "Remove the task."
            )
        if getattr(task, "MULTIMODAL", False):
            raise ParamsError(
                f"evaluate.tasks: {name} requires images, but the base model accepts only text. Remove the task."
            )
    return tasks


def run_tasks(tasks: dict[str, Any], model: Any, tokenizer: Any) -> dict[str, dict[str, float]]:
    """Run the tasks and return {task: {metric: score}}, including any standard errors that the harness reports."""
    if not tasks:
        return {}
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=BATCH_ROWS)
    for task in tasks.values():
        task.set_fewshot_seed(SEED)
    with _quiet():
        results = evaluate(lm=lm, task_dict=tasks, log_samples=False, bootstrap_iters=RESAMPLES)["results"]
    return {name: _numbers(results[name]) for name in sorted(results)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Discard stderr unless it is a terminal, because the harness's progress bars would clutter a log."""
    if sys.stderr.isatty():
        yield
    else:
        with redirect_stderr(io.StringIO()):
            yield


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """Return the finite numbers as {metric: number}.

    The harness's keys have the form `metric,filter`, such as `acc,none` for a score without a filter.
    """
    numbers = {}
    for key, value in metrics.items():
        name, _, filter_name = key.partition(",")
        if filter_name and isinstance(value, int | float) and math.isfinite(value):
            numbers[name if filter_name == "none" else f"{name} ({filter_name})"] = round(float(value), 6)
    return numbers
