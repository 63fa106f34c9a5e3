"""Tracks training with MLflow. Each training run is one MLflow run. In a sweep, it is a child of the sweep's run.

The environment variable MLFLOW_TRACKING_URI selects the store. The default is an SQLite database in the repository's
mlflow/ folder. If the server is unreachable, training continues, and the register stage later creates the run from the
loss curve and the metrics.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from recipe.core.errors import Stopped, TrackingError
from recipe.core.format import first_line, without_credentials
from recipe.core.io import read_json
from recipe.core.paths import Paths, fingerprint, repository
from recipe.tracking.address import run_address
from recipe.tracking.lineage import lineage
from recipe.tracking.moved_store import correct_paths
from recipe.tracking.settings import URI, check_uri, database_uri, default_store, prepare_environment

IGNORED = prepare_environment()

# isort: split
import mlflow
from mlflow import MlflowClient
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset

from recipe.tracking.failures import AWAY

# These tags describe the experiment, and make the UI show runs and charts instead of agent traces.
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": "Each run records one training. Its description says whether the adapter is better than the "
    "base model. Its artifacts contain the data report and the evaluation report.",
}
SYSTEM_METRICS_SECONDS = 5
MAX_PARAM_CHARS = 6000  # MLflow's limit


class Tracker:
    """A client for an experiment on a tracking server. It connects to the server on first use."""

    def __init__(self, repository: Path, experiment: str, run_facts: dict[str, Any]) -> None:
        """Configure MLflow without connecting to the server.

        The keys of `run_facts` are name, fingerprint, params ({key: value}), tags, and datasets ([{name, sha256,
        context}]).
        """
        self.repository, self.experiment, self.facts = repository, experiment, run_facts
        if IGNORED:
            print(
                f"note: {', '.join(IGNORED)} from the environment {'is' if len(IGNORED) == 1 else 'are'} ignored. Of "
                "MLflow's variables, only those that say how to reach a server are used."
            )
        store = default_store(repository)
        self.uri = os.environ.get(URI) or database_uri(store)
        self.artifacts = None if os.environ.get(URI) else (store / "artifacts").as_uri()
        if self.artifacts:
            store.mkdir(exist_ok=True)
            correct_paths(store)
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)
        mlflow.set_system_metrics_sampling_interval(SYSTEM_METRICS_SECONDS)

    @cached_property
    def client(self) -> MlflowClient:
        """The MLflow client, created on first use. Raises TrackingError if the URI points to a folder of files."""
        check_uri(self.uri)
        return MlflowClient(self.uri)

    def experiment_id(self) -> str:
        """Return the experiment's id. If the experiment does not exist, create it.

        Raises TrackingError if the experiment was deleted.
        """
        experiment = self.client.get_experiment_by_name(self.experiment)
        if experiment is None:
            return self.client.create_experiment(
                self.experiment, artifact_location=self.artifacts, tags=EXPERIMENT_TAGS
            )
        if experiment.lifecycle_stage == "deleted":
            raise TrackingError(
                f"the MLflow experiment {self.experiment!r} was deleted. Restore it "
                f"(`mlflow experiments restore -x {experiment.experiment_id}`) or change registry.experiment."
            )
        return experiment.experiment_id

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

    def start(self, run_id: str | None, *, system_metrics: bool) -> str:
        """Resume the given run, and return its id.

        If `run_id` is None, start a new run instead, and log its params, tags and datasets.
        """
        name, experiment_id = self.facts["name"], self.experiment_id()
        run = mlflow.start_run(
            run_id=run_id,
            experiment_id=experiment_id,
            run_name=None if run_id else name,
            log_system_metrics=system_metrics,
        )
        if run_id is None:
            values = {key: str(value)[:MAX_PARAM_CHARS] for key, value in self.facts["params"].items()}
            mlflow.log_params(values)
            mlflow.set_tags({**self.facts["tags"], **self._sweep_tags(), "fingerprint": self.facts["fingerprint"]})
            for dataset in self.facts["datasets"]:
                source = CodeDatasetSource(tags={"mlflow.source.name": dataset["name"]})
                mlflow.log_input(
                    MetaDataset(source, name=dataset["name"], digest=dataset["sha256"][:36]),
                    context=dataset["context"],
                    tags={"sha256": dataset["sha256"]},
                )
        return run.info.run_id

    def _sweep_tags(self) -> dict[str, str]:
        """Return the tags that make a run of `dvc exp run` a child of its sweep's run, or {} for any other run.

        A sweep consists of all experiments from the same commit. If the sweep has no run yet, create one.
        """
        baseline, name = os.environ.get("DVC_EXP_BASELINE_REV"), os.environ.get("DVC_EXP_NAME", "")
        if not baseline:
            return {}
        parent = self._sweep(baseline)
        if parent is None:
            note = (
                f"These are the runs of `dvc exp run` from commit `{baseline}`. "
                "To compare runs, select several child runs and click Compare."
            )
            tags = {"sweep": baseline, "mlflow.note.content": note}
            created = self.client.create_run(self.experiment_id(), tags=tags, run_name=f"sweep from {baseline[:7]}")
            self.client.set_terminated(created.info.run_id)
            parent = self._sweep(baseline)
            if parent != created.info.run_id:  # a concurrent experiment created the sweep's run first
                self.client.delete_run(created.info.run_id)
        return {"mlflow.parentRunId": str(parent), "dvc_experiment": name}

    def _sweep(self, baseline: str) -> str | None:
        """Return the id of the oldest sweep run for a commit, or None if there is no such run."""
        oldest_first = ["attributes.start_time ASC", "attributes.run_id ASC"]
        runs = self.client.search_runs(
            [self.experiment_id()], f"tags.sweep = '{baseline}'", max_results=1, order_by=oldest_first
        )
        return runs[0].info.run_id if runs else None

    @contextmanager
    def training(self) -> Iterator[Callable[[dict[str, float], int], None]]:
        """Keep a run open during the `with` block, and yield a function that logs metrics.

        If MLflow fails, training continues.
        """
        alive = True

        def report_failure(error: Exception) -> None:
            nonlocal alive
            alive = False
            server, reason = without_credentials(self.uri), first_line(error)
            print(f"MLflow at {server} is unreachable ({reason}). The register stage will log this run.")

        def log(values: dict[str, float], step: int) -> None:
            if not alive:
                return
            try:
                mlflow.log_metrics({f"train/{name}": value for name, value in values.items()}, step=step)
            except AWAY as error:
                report_failure(error)

        try:
            run_id = self.start(self.find_run(finished=False), system_metrics=True)
            print(f"MLflow run: {self.link(run_id)}")
        except AWAY as error:
            report_failure(error)
        status = "FAILED"
        try:
            yield log
            # A run with missing log entries is marked as failed. The register stage then logs a complete run from the
            # loss curve.
            status = "FINISHED" if alive else "FAILED"
        except Stopped:
            status = "KILLED" if alive else "FAILED"
            raise
        finally:
            if mlflow.active_run():
                try:
                    mlflow.end_run(status)
                except AWAY as error:
                    report_failure(error)

    def link(self, run_id: str) -> str:
        """Return the URL of a run or, if the store has no HTTP server, text that says how to open the run."""
        if self.uri.startswith("http"):
            return run_address(without_credentials(self.uri), self.experiment_id(), run_id)
        return f"{self.facts['name']} in experiment {self.experiment} (run `make mlflow-ui` to open it)"


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
