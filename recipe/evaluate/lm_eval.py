"""Tasks of lm-evaluation-harness on a model that is loaded already: `evaluate.tasks`.

    harness = load_tasks(["hellaswag", "tasks/mine.yaml"])         # refuses before anything is computed
    scores = run_tasks(harness, model, tokenizer)                  # {"hellaswag": {"acc": 0.28, "acc_stderr": 0.005}}

The harness is no part of the lock that everyone installs. A task by name fetches its rows from the Hub, as they are
that day; one in a YAML file of your own can name rows beside it.
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

LOCK = "requirements/tasks.lock"
INSTALL = f".venv/bin/python -m pip install --no-deps --require-hashes -r {LOCK}"
BATCH_ROWS = 8
SEED = 0
RESAMPLES = 1000  # for the standard error of metrics that have no formula for it


def load_tasks(names: Sequence[str]) -> dict[str, Any]:
    """The tasks, with their rows fetched.

    Raises MachineError where the harness is not installed or a task's rows can't be had, ParamsError for a name that
    it does not know, DataError for a file that is no task.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise MachineError(
            f"evaluate.tasks names {', '.join(names)}, and lm-evaluation-harness is not installed. At the top of the "
            f"repository: {INSTALL}"
        )
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager()
    for name in names:
        if name.endswith(".yaml"):
            if not Path(name).is_file():
                raise ParamsError(f"evaluate.tasks: there is no file {name}. The path counts from the recipe folder.")
        elif name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise ParamsError(
                f"evaluate.tasks: lm-evaluation-harness has no task {name}.{hint} `lm_eval ls tasks` lists them."
            )
    tasks: dict[str, Any] = {}
    for name in names:
        try:
            with _quiet():
                tasks |= manager.load([name])["tasks"]
        except OSError as error:  # of the Hub and of files: its errors are kinds of OSError
            raise MachineError(f"evaluate.tasks: the rows of {name} can't be had: {_first(error)}") from None
        except ImportError as error:
            raise MachineError(f"evaluate.tasks: {name} needs a package that is not here: {_first(error)}") from None
        except Exception as error:  # noqa: BLE001 - a task may run any code of the harness
            what = f"{type(error).__name__}: {_first(error)}"
            if name.endswith(".yaml"):
                raise DataError(f"evaluate.tasks: {name} is no task: {what}") from None
            raise MachineError(f"evaluate.tasks: {name} can't be loaded: {what}") from None
    for name, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise ParamsError(f"evaluate.tasks: {name} runs code that the model wrote, which is not done here.")
        if getattr(task, "MULTIMODAL", False):
            raise ParamsError(f"evaluate.tasks: {name} shows pictures, and the base model reads text.")
    return tasks


def run_tasks(tasks: dict[str, Any], model: Any, tokenizer: Any) -> dict[str, dict[str, float]]:
    """The model's score in every metric of every task, and its standard error where the harness gives one."""
    if not tasks:
        return {}
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    served = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=BATCH_ROWS)
    for task in tasks.values():
        task.set_fewshot_seed(SEED)
    with _quiet():
        results = evaluate(lm=served, task_dict=tasks, log_samples=False, bootstrap_iters=RESAMPLES)["results"]
    return {name: _numbers(results[name]) for name in sorted(results)}


@contextmanager
def _quiet() -> Iterator[None]:
    """The harness draws a bar for each of its steps; in a log they would be all that stands there."""
    if sys.stderr.isatty():
        yield
    else:
        with redirect_stderr(io.StringIO()):
            yield


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """{metric: number}. The harness writes `acc,none`: the filter's name where it has one, else none."""
    made = {}
    for key, value in metrics.items():
        name, _, kind = key.partition(",")
        if kind and isinstance(value, int | float) and math.isfinite(value):
            made[name if kind == "none" else f"{name} ({kind})"] = round(float(value), 6)
    return made


def _first(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
