"""The services that the command line passes to a stage. They must not change any output.

Only `cli` imports their implementations.

def run(params, paths, services): ...    # the entry point of every stage, in its stage.py
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Log = Callable[[dict[str, float], int], None]  # called with {name: value} and the step


class Progress(Protocol):
    """Shows progress while iterating over items."""

    def __call__(self, items: Iterator[Any], what: str, total: int | None = None) -> Iterator[Any]:
        """Yield the same items. `what` labels the progress bar; `total` is the number of items, if known."""


class Tracker(Protocol):
    """The training run on the tracking server. Training continues if the server is unreachable."""

    @property
    def facts(self) -> dict[str, Any]:
        """Name, fingerprint, params, tags and datasets of the run."""

    def training(self) -> AbstractContextManager[Log]:
        """Keep the run open during the block. Yields a function that logs values to the run."""


@dataclass(frozen=True)
class Services:
    """Functions that the command line provides to a stage. Call them only when needed: some import large libraries."""

    progress: Progress
    check_model: Callable[[Path], None]  # raises MachineError if this machine can't train the model in this folder
    fit_to_memory: Callable[[], Any]  # section `train` with `auto` resolved; raises MachineError if it doesn't fit
    tracker: Callable[[], Tracker]
    registry: Callable[[], Any]  # returns a Tracker that also implements register.stage.Registry
    remember: Callable[[dict[str, Any]], None]  # stores run metadata, which is kept out of the outputs
