"""Connects to MLflow: to the server in MLFLOW_TRACKING_URI, or to a database in the repository's mlflow/ folder.

A server that does not answer must not block a command for long. `check_answer` therefore limits the waiting time.
"""

import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import cached_property
from pathlib import Path
from threading import Thread
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from recipe.core.errors import TrackingError
from recipe.core.format import first_line, without_credentials
from recipe.core.paths import make_command
from recipe.tracking import IGNORED
from recipe.tracking.address import run_address
from recipe.tracking.failures import AWAY
from recipe.tracking.moved_store import correct_paths
from recipe.tracking.settings import URI, check_uri, database_uri, default_store

# These tags describe the experiment, and make the UI show runs and charts instead of agent traces.
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": "Each run records one training. Its description says whether the adapter is better than the "
    "base model. Its artifacts contain the data report and the evaluation report.",
}
ANSWER_SECONDS = 9  # how long `recipe register` and `recipe sync` wait for the first answer
SQLITE = "sqlite:///"


class Server:
    """An MLflow store. The constructor does not connect to it."""

    def __init__(self, repository: Path) -> None:
        if IGNORED:
            print(
                f"note: {', '.join(IGNORED)} from the environment {'is' if len(IGNORED) == 1 else 'are'} ignored. Of "
                "MLflow's variables, only those that say how to reach a server are used."
            )
        store = default_store(repository)
        self.pending = store / "pending"  # journals of trainings that this or another server does not have yet
        self.uri = os.environ.get(URI) or database_uri(store)
        self.store = store if self.uri == database_uri(store) else None
        # What journals call this server. The path of the default store changes if the repository is moved.
        self.name = "" if self.store else without_credentials(self.uri)
        if self.store:
            self.store.mkdir(exist_ok=True)
        for library in ("mlflow", "alembic"):
            logging.getLogger(library).setLevel(logging.ERROR)
        # MLflow logs a traceback if a database is locked. The error that it raises also contains the reason.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)

    @cached_property
    def client(self) -> MlflowClient:
        """The MLflow client, created on first use. Raises TrackingError if the URI points to a folder of files."""
        check_uri(self.uri)
        if self.store:
            correct_paths(self.store)
        return MlflowClient(self.uri)

    def is_new(self) -> bool:
        """Return whether this is the default store and its database does not exist. MLflow creates it in seconds."""
        return self.store is not None and not (self.store / "mlflow.db").exists()

    def experiment_id(self, name: str) -> str:
        """Return the experiment's id. If the experiment does not exist, create it.

        Raises TrackingError if the experiment was deleted.
        """
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            artifacts = (self.store / "artifacts").as_uri() if self.store else None
            try:
                return self.client.create_experiment(name, artifact_location=artifacts, tags=EXPERIMENT_TAGS)
            except MlflowException:
                # A concurrent training, or an earlier request whose answer was lost, may have created the experiment.
                experiment = self.client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        if experiment.lifecycle_stage == "deleted":
            raise TrackingError(
                f"the MLflow experiment {name!r} was deleted. Restore it "
                f"(`mlflow experiments restore -x {experiment.experiment_id}`) or change registry.experiment."
            )
        return experiment.experiment_id

    def link(self, run: Run) -> str:
        """Return the URL of a run or, if the store has no HTTP server, text that says how to open the run."""
        if self.uri.startswith("http"):
            return run_address(without_credentials(self.uri), run.info.experiment_id, run.info.run_id)
        return f"{run.info.run_name} (run `{make_command('mlflow-ui', Path.cwd())}` to open it)"

    def check_answer(self) -> None:
        """Raise one of the errors in AWAY if the store does not answer within ANSWER_SECONDS."""
        check_uri(self.uri)
        if not self.uri.startswith(SQLITE):
            in_time(ANSWER_SECONDS, lambda: self.client.get_experiment_by_name("Default"))
            return
        # MLflow waits 20 s for each statement if a database is locked.
        database = Path(self.uri.removeprefix(SQLITE))
        if database.is_file():
            try:
                with closing(sqlite3.connect(database, timeout=ANSWER_SECONDS, isolation_level=None)) as connection:
                    connection.execute("BEGIN IMMEDIATE")
                    connection.execute("ROLLBACK")
            except sqlite3.Error as error:
                raise MlflowException(str(error)) from None

    def remedy(self) -> str:
        """Return a sentence that says what to do if the store does not answer."""
        if self.uri.startswith(SQLITE):
            return "End the program that has locked the database, if there is one."
        return f"Start the server at {without_credentials(self.uri)}, or correct {URI}."


@contextmanager
def explained(server: Server, problem: str, advice: str) -> Iterator[None]:
    """Convert MLflow's errors to a TrackingError with a one-line message, which contains `problem` and `advice`."""
    try:
        yield
    except AWAY as error:
        address = without_credentials(server.uri)
        raise TrackingError(f"MLflow at {address} {problem}: {first_line(error)}. {advice}") from None


def in_time(seconds: float, question: Callable[[], Any]) -> None:
    """Call `question`, and raise its error, or MlflowException if it takes more than `seconds`.

    A request of MLflow has no limit that covers its retries. The call is therefore abandoned in its thread.
    """
    problems: list[Exception] = []

    def ask() -> None:
        try:
            question()
        except (*AWAY, TrackingError) as error:
            problems.append(error)

    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise MlflowException(f"no answer within {seconds} s")
    if problems:
        raise problems[0]
