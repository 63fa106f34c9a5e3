"""What the command line hands to a stage. Nothing in it may change an output: only `cli` may import these parts.

def run(params, paths, services): ...    # every stage's entry, in its stage.py
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Log = Callable[[dict[str, float], int], None]  # numbers by name, at a step


class Progress(Protocol):
    """Shows progress while items are iterated."""

    def __call__(self, items: Iterator[Any], what: str, total: int | None = None) -> Iterator[Any]:
        """The same items; `what` is the text beside the bar."""


class Tracker(Protocol):
    """The run of one training on the tracking server. A server that does not answer never stops the training."""

    @property
    def facts(self) -> dict[str, Any]:
        """Name, fingerprint, params, tags and datasets of the run."""

    def training(self) -> AbstractContextManager[Log]:
        """A run for the block, and the function that logs numbers to it."""


@dataclass(frozen=True)
class Services:
    """The command line's tools for a stage. Functions are called only where they are needed: some import a lot."""

    progress: Progress
    check_model: Callable[[Path], None]  # raises MachineError for a model that can't be trained on this machine
    fit_to_memory: Callable[[], Any]  # the section `train` with `auto` resolved; raises MachineError if it can't fit
    tracker: Callable[[], Tracker]
    registry: Callable[[], Any]  # a tracker that is a register.stage.Registry too
    remember: Callable[[dict[str, Any]], None]  # keeps run metadata outside of the outputs
