"""Tracks training with MLflow. Each training run is one MLflow run. In a sweep, it is a child of the sweep's run.

The environment variable MLFLOW_TRACKING_URI selects the store. The default is an SQLite database in the repository's
mlflow/ folder. If the server is unreachable, training continues, and a journal in mlflow/pending/ keeps what it logs.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.tracking.context.registry import resolve_tags

from recipe.core.errors import DataError
from recipe.core.io import read_json
from recipe.core.paths import Paths, fingerprint, repository
from recipe.core.services import Log
from recipe.tracking.journal import Journal, now, paths_in
from recipe.tracking.lineage import lineage
from recipe.tracking.live import live
from recipe.tracking.server import Server
from recipe.tracking.settings import check_uri

MAX_PARAM_CHARS = 6000  # MLflow's limit


class Tracker:
    """The run of a training in an experiment. It connects to the server on first use."""

    def __init__(self, repository: Path, experiment: str, run_facts: dict[str, Any]) -> None:
        """Configure MLflow without connecting to the server.

        The keys of `run_facts` are name, fingerprint, params ({key: value}), tags, and datasets ([{name, sha256,
        context}]).
        """
        self.repository, self.experiment, self.facts = repository, experiment, run_facts
        self.server = Server(repository)
        self.uri = self.server.uri

    @property
    def client(self) -> MlflowClient:
        """The MLflow client. Raises TrackingError if the URI points to a folder of files."""
        return self.server.client

    def experiment_id(self) -> str:
        """Return the experiment's id. If the experiment does not exist, create it.

        Raises TrackingError if the experiment was deleted.
        """
        return self.server.experiment_id(self.experiment)

    def find_run(self, *, finished: bool) -> str | None:
        """Return the id of the newest run with this training's fingerprint, or None if there is no such run.

        If `finished` is true, only finished runs are considered. Otherwise, only runs that can be resumed are
        considered: first those that are running, then those that were killed.
        """
        for status in ("FINISHED",) if finished else ("RUNNING", "KILLED"):
            runs = self.client.search_runs(
                [self.experiment_id()],
                f"tags.fingerprint = '{self.facts['fingerprint']}' and attributes.status = '{status}'",
                max_results=1,
            )
            if runs:
                return runs[0].info.run_id
        return None

    @contextmanager
    def training(self) -> Iterator[Log]:
        """Keep a run open during the `with` block, and yield a function that logs metrics.

        If MLflow fails, training continues.
        """
        check_uri(self.uri)
        with live(self.server, self.open_journal() or self.new_journal()) as log:
            yield log

    def open_journal(self) -> Journal | None:
        """Return the journal of this training if it was stopped or killed before it was finished, or None."""
        for path in paths_in(self.server.pending, self.facts["fingerprint"]):
            try:
                journal = Journal.open(path)
            except DataError as error:
                print(f"note: {error}")
                continue
            if journal and journal.status in (None, "KILLED") and journal.header["server"] == self.server.name:
                return journal
            if journal:
                journal.close()
        return None

    def new_journal(self) -> Journal:
        """Create a journal for a new run. Its header describes the run completely."""
        tags, name = dict(self.facts["tags"]), self.facts["name"]
        baseline = os.environ.get("DVC_EXP_BASELINE_REV")
        if baseline:
            tags["dvc_experiment"] = os.environ.get("DVC_EXP_NAME", "")
        header = {
            "id": uuid.uuid4().hex,
            "server": self.server.name,
            "experiment": self.experiment,
            "name": name,
            "fingerprint": self.facts["fingerprint"],
            "time": now(),
            "params": {key: str(value)[:MAX_PARAM_CHARS] for key, value in self.facts["params"].items()},
            # MLflow's own tags contain the user and the program.
            "tags": resolve_tags({**tags, "mlflow.runName": name}),
            "sweep": baseline,
            "datasets": self.facts["datasets"],
        }
        return Journal.new(self.server.pending, header)

    def link(self, run_id: str) -> str:
        """Return the URL of a run or, if the store has no HTTP server, text that says how to open the run."""
        return self.server.link(self.client.get_run(run_id))


def run_facts(params: dict[str, Any], paths: Paths) -> tuple[Path, str, dict[str, Any]]:
    """Return the arguments that Tracker needs for a recipe folder.

    The arguments are the repository root, the experiment name and the facts about the run.
    """
    flat = {
        f"{section}.{key}": value
        for section, values in params.items()
        for key, value in values.model_dump(mode="json").items()
    }
    lora, train = params["lora"], params["train"]
    data = read_json(paths.raw / "manifest.json")
    base, max_length = params["model"].id.split("/")[-1], params["sequence"].max_length
    source = Path(params["data"].source)
    local_name = source.stem if source.is_absolute() else "/".join(part for part in source.parts if part != "..")
    rows = params["data"].id.split("/")[-1] if params["data"].id else local_name
    facts = {
        "name": f"{rows} on {base}, r{lora.r} lr{train.learning_rate:g} len{max_length}",
        "fingerprint": fingerprint(paths.folder, "train"),
        "params": flat,
        "tags": lineage(repository(paths.folder)),
        "datasets": [
            {"name": file["name"], "sha256": file["sha256"], "context": file["split"]} for file in data["files"]
        ],
    }
    return repository(paths.folder), params["registry"].experiment, facts
