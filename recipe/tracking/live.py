"""Sends a journal to MLflow while the training runs, in a thread, so that training never waits for a request.

The training waits for MLflow only at its start and at its end, LOST_SECONDS in total. If MLflow does not have all
values by then, the journal remains for `recipe sync` and the register stage.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from recipe.core.errors import Stopped, TrackingError
from recipe.core.format import first_line, without_credentials
from recipe.core.services import Log
from recipe.tracking.failures import AWAY
from recipe.tracking.journal import Journal
from recipe.tracking.replay import Replay
from recipe.tracking.server import Server
from recipe.tracking.system_metrics import system_metrics

LOST_SECONDS = 8.0
START_SECONDS = 3.0  # of these, at the start, to print the link to the run
STOP_SECONDS = 2.0  # at the end of a training that was stopped or failed
CREATION_SECONDS = 60.0  # if the default store is new, creating its database takes seconds
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 5.0, 60.0


class Sender(threading.Thread):
    """A thread that sends the entries of a journal as they are added. After a failure, it tries again later."""

    def __init__(self, replay: Replay) -> None:
        super().__init__(daemon=True)  # the process can end while a request is waiting
        self.replay = replay
        self.wake, self.closing, self.tried = threading.Event(), threading.Event(), threading.Event()
        self.problem: Exception | None = None  # the last failure, or None if the last request succeeded
        self.done = False  # MLflow has everything, including the status

    def run(self) -> None:
        """Send until the journal is closed and everything was sent, or one attempt failed after it was closed."""
        delay = FIRST_RETRY_SECONDS
        while not self.done:
            self.wake.clear()  # before everything else: what is set from now on ends the next wait
            last = self.closing.is_set()
            try:
                self.replay.send()
            except (*AWAY, TrackingError) as error:
                self.problem = error
                self.tried.set()
                if last:
                    return
                self.closing.wait(delay)
                delay = min(2 * delay, LONGEST_RETRY_SECONDS)
                continue
            self.problem, delay, self.done = None, FIRST_RETRY_SECONDS, last
            self.tried.set()
            if not last:
                self.wake.wait()

    def finish(self, seconds: float) -> bool:
        """Send the rest, wait at most `seconds`, and return whether MLflow has everything."""
        self.closing.set()
        self.wake.set()
        self.join(seconds)
        self.replay.cancelled.set()
        return self.done


@contextmanager
def live(server: Server, journal: Journal) -> Iterator[Log]:
    """Send what the block logs to MLflow, and yield the function that logs metrics.

    Raises TrackingError before the block if MLflow rejects the run, for example because its experiment was deleted.
    """
    replay = Replay(server, journal, live=True)
    sender = Sender(replay)
    patience = CREATION_SECONDS if server.is_new() else START_SECONDS
    started = time.monotonic()
    sender.start()
    sender.tried.wait(patience)
    lost = min(time.monotonic() - started, START_SECONDS)
    if isinstance(sender.problem, TrackingError):
        sender.finish(0)
        journal.close() if journal.entries else journal.delete()
        raise sender.problem
    linked = reported = False
    if replay.run:
        print(f"MLflow run: {server.link(replay.run)}")
        linked = True

    def report() -> None:
        nonlocal reported
        if not reported and (sender.problem or not sender.tried.is_set()):
            reported = True
            reason = first_line(sender.problem) if sender.problem else "no answer yet"
            print(
                f"MLflow at {without_credentials(server.uri)} is unreachable ({reason}). Training continues, and "
                f"{journal.path} keeps what it logs."
            )

    def log(values: dict[str, float], step: int) -> None:
        journal.log({f"train/{name}": value for name, value in values.items()}, step)
        sender.wake.set()
        report()

    report()
    status, seconds = "FAILED", STOP_SECONDS
    try:
        with system_metrics(lambda values: journal.log(values, None)):
            yield log
        status, seconds = "FINISHED", LOST_SECONDS - lost
    except Stopped:
        status = "KILLED"
        raise
    finally:
        journal.end(status)
        if sender.finish(seconds):
            if not linked and replay.run:
                print(f"MLflow run: {server.link(replay.run)}")
            journal.delete()
        else:
            journal.close()
            print(
                f"MLflow at {without_credentials(server.uri)} does not have everything that this training logged. "
                f"{journal.path} keeps it. `recipe sync` and the register stage send it."
            )
