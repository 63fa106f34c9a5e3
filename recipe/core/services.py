"""What the command line passes to a stage. Nothing here may change an output; only `cli` imports the implementations.

def run(params, paths, services): ...    # the entry point of every stage, in its stage.py
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Log = Callable[[dict[str, float], int], None]  # values by name, and the step


class Progress(Protocol):
    """Shows progress while iterating over items."""

    def __call__(self, items: Iterator[Any], what: str, total: int | None = None) -> Iterator[Any]:
        """The same items; `what` is the label of the progress bar."""


class Tracker(Protocol):
    """The training run on the tracking server. Training continues if the server is unreachable."""

    @property
    def facts(self) -> dict[str, Any]:
        """Name, fingerprint, params, tags and datasets of the run."""

    def training(self) -> AbstractContextManager[Log]:
        """Keep the run open during the block; yields the function that logs values to it."""


@dataclass(frozen=True)
class Services:
    """The command line's tools for a stage. Call the functions only when needed: some import large libraries."""

    progress: Progress
    check_model: Callable[[Path], None]  # raises MachineError if the model can't be trained on this machine
    fit_to_memory: Callable[[], Any]  # returns section `train` with `auto` resolved; raises MachineError if too large
    tracker: Callable[[], Tracker]
    registry: Callable[[], Any]  # a tracker that is also a register.stage.Registry
    remember: Callable[[dict[str, Any]], None]  # stores run metadata outside the outputs
