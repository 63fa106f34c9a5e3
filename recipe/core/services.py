"""Defines the services that the command line passes to each stage. A service must not change any output.

Only `cli` imports the services' implementations.

def run(params, paths, services): ...    # in stage.py; the fetch stage has run_data and run_model instead
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Log = Callable[[dict[str, float], int], None]  # called with {name: value} and the step


class Progress(Protocol):
    """A function that shows progress while iterating over items."""

    def __call__(self, items: Iterator[Any], what: str, total: int | None = None) -> Iterator[Any]:
        """Yield the items unchanged. `what` labels the progress bar. `total` is the number of items, if known."""


class Tracker(Protocol):
    """The training run on the tracking server. Training continues if the server is unreachable."""

    @property
    def facts(self) -> dict[str, Any]:
        """The name, fingerprint, params, tags and datasets of the run."""

    def training(self) -> AbstractContextManager[Log]:
        """Keep the run open during the block, and yield a function that logs values to the run."""


@dataclass(frozen=True)
class Services:
    """Functions that the command line provides to a stage.

    Some functions import large libraries, so call a function only when it is needed.
    """

    progress: Progress
    check_model: Callable[[Path], None]  # raises MachineError if this machine can't train the model in this folder
    fit_to_memory: Callable[[], Any]  # returns `train` with `auto` resolved; raises MachineError if memory is too small
    tracker: Callable[[], Tracker]
    registry: Callable[[], Any]  # returns a Tracker that also implements register.stage.Registry
    remember: Callable[[dict[str, Any]], None]  # stores run metadata outside the outputs
