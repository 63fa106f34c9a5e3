"""Sends a journal to MLflow. Sending it again, after a failure or a kill at any point, adds nothing twice.

A run is found by the id of its training, which is one of its tags. MLflow appends a point each time a value is logged,
so only points are sent whose metric and step the run does not have. If the answer to a request was lost, or a frozen
server processes a request late, the point has the same timestamp as before, and MLflow's database ignores it.
"""

from collections.abc import Iterator
from threading import Event
from typing import Any

from mlflow import MlflowClient
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, Run
from mlflow.exceptions import MlflowException

from recipe.tracking.journal import Journal
from recipe.tracking.server import Server

TRAINING = "training_id"
BATCH_POINTS = 500  # MLflow accepts at most 1,000 metrics in a request
OLDEST_FIRST = ["attributes.start_time ASC", "attributes.run_id ASC"]
SENT = ("train/", "system/")  # the metrics of a training; the register stage logs others


class Replay:
    """Creates or finds the run of a journal, and brings it up to date."""

    def __init__(self, server: Server, journal: Journal, *, live: bool) -> None:
        """If `live` is true, the training is still running, so the run is marked as running."""
        self.server, self.journal, self.live = server, journal, live
        self.run: Run | None = None
        self.cancelled = Event()  # no further request is sent, because another process may now send the journal
        self.num_points = 0  # points sent so far

    def send(self) -> None:
        """Send the entries that the run does not have, and its status. Raises one of the errors in AWAY."""
        # After a failure, the next call asks again what the run contains.
        run, self.run = self.run, None
        if run is None:
            run = self._open()
        for entries in batches(self.journal.entries[self.num_entries :]):
            points = list(self._new_points(entries, run))
            if points:
                self.client.log_batch(run.info.run_id, metrics=points)
            self.present |= {(point.key, point.step) for point in points}
            self.num_points += len(points)
            self.num_entries += len(entries)
        last = self.journal.entries[self.num_entries - 1] if self.num_entries else {}
        if last.get("status"):
            self.client.set_terminated(run.info.run_id, last["status"], last["time"])
            self._delete_all_but(run)
        self.run = run

    @property
    def client(self) -> MlflowClient:
        """The client for the next request. Raises MlflowException if sending was cancelled."""
        if self.cancelled.is_set():
            raise MlflowException("cancelled")
        return self.server.client

    def _open(self) -> Run:
        header = self.journal.header
        self.experiment_id = self.server.experiment_id(header["experiment"])
        run = next(iter(self._runs()), None) or self._resumable() or self._create()
        run_id = run.info.run_id
        params = [Param(key, value) for key, value in header["params"].items() if key not in run.data.params]
        if params:
            self.client.log_batch(run_id, params=params)
        if not run.inputs or not run.inputs.dataset_inputs:
            self.client.log_inputs(run_id, [dataset_input(**dataset) for dataset in header["datasets"]])
        if self.live and run.info.status != "RUNNING":
            self.client.update_run(run_id, status="RUNNING")
        self.present, self.num_entries = points_of(self.client, run, SENT), 0
        return run

    def _runs(self) -> list[Run]:
        query = f"tags.{TRAINING} = '{self.journal.header['id']}'"
        return list(self.client.search_runs([self.experiment_id], query, order_by=OLDEST_FIRST))

    def _resumable(self) -> Run | None:
        """Return the run of the same training if its journal was sent and deleted before the training was resumed."""
        header = self.journal.header
        for status in ("RUNNING", "KILLED"):
            query = f"tags.fingerprint = '{header['fingerprint']}' and attributes.status = '{status}'"
            for run in self.client.search_runs([self.experiment_id], query):
                # A run whose journal exists belongs to another training with the same inputs.
                other = run.data.tags.get(TRAINING, "")[:8] or "none"
                if not (self.journal.path.parent / f"{header['fingerprint'][:16]}-{other}.jsonl").exists():
                    self.client.set_tag(run.info.run_id, TRAINING, header["id"])
                    return run
        return None

    def _create(self) -> Run:
        header = self.journal.header
        tags = {**header["tags"], "fingerprint": header["fingerprint"], TRAINING: header["id"]}
        if header["sweep"]:
            tags["mlflow.parentRunId"] = sweep_run(self.client, self.experiment_id, header["sweep"])
        self.client.create_run(self.experiment_id, header["time"], tags, header["name"])
        # MLflow repeats a request if the answer is late, so there may be two runs.
        run = self._runs()[0]
        self._delete_all_but(run)
        return run

    def _delete_all_but(self, run: Run) -> None:
        for other in self._runs():
            if other.info.run_id != run.info.run_id:
                self.client.delete_run(other.info.run_id)

    def _new_points(self, entries: list[dict[str, Any]], run: Run) -> Iterator[Metric]:
        """Yield one point for each metric and step in the entries that the run does not have.

        After a training was resumed from a checkpoint, the journal contains some steps twice.
        """
        seen = set(self.present)
        for entry in entries:
            step = entry.get("step")
            if step is None:
                step = max(0, entry["time"] - run.info.start_time) // 1000
            for key, value in entry.get("metrics", {}).items():
                if (key, step) not in seen:
                    seen.add((key, step))
                    yield Metric(key, value, entry["time"], step)


def batches(entries: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Split the entries into lists of at most BATCH_POINTS points. An entry has fewer points than that."""
    batch: list[dict[str, Any]] = []
    num_points = 0
    for entry in entries:
        size = len(entry.get("metrics", ()))
        if batch and num_points + size > BATCH_POINTS:
            yield batch
            batch, num_points = [], 0
        batch.append(entry)
        num_points += size
    if batch:
        yield batch


def points_of(client: MlflowClient, run: Run, prefixes: tuple[str, ...]) -> set[tuple[str, int]]:
    """Return the metric and step of each point of a run, for the metrics whose names have one of the prefixes."""
    keys = [key for key in run.data.metrics if key.startswith(prefixes)]
    return {(key, point.step) for key in keys for point in client.get_metric_history(run.info.run_id, key)}


def log_missing(client: MlflowClient, run: Run, points: list[Metric]) -> None:
    """Log the points whose metric and step the run does not have."""
    present = points_of(client, run, tuple({point.key for point in points}))
    missing = [point for point in points if (point.key, point.step) not in present]
    for start in range(0, len(missing), BATCH_POINTS):
        client.log_batch(run.info.run_id, metrics=missing[start : start + BATCH_POINTS])


def dataset_input(name: str, sha256: str, context: str) -> DatasetInput:
    """Describe a file of rows as a dataset of a run."""
    dataset = MetaDataset(CodeDatasetSource(tags={"mlflow.source.name": name}), name=name, digest=sha256[:36])
    tags = [InputTag("sha256", sha256), InputTag("mlflow.data.context", context)]
    return DatasetInput(dataset=dataset._to_mlflow_entity(), tags=tags)


def sweep_run(client: MlflowClient, experiment_id: str, baseline: str) -> str:
    """Return the id of the parent run of all runs of `dvc exp run` from a commit. If there is none, create it."""
    parent = first_sweep_run(client, experiment_id, baseline)
    if parent is None:
        note = (
            f"These are the runs of `dvc exp run` from commit `{baseline}`. "
            "To compare runs, select several child runs and click Compare."
        )
        tags = {"sweep": baseline, "mlflow.note.content": note}
        created = client.create_run(experiment_id, tags=tags, run_name=f"sweep from {baseline[:7]}").info.run_id
        client.set_terminated(created)
        parent = first_sweep_run(client, experiment_id, baseline) or created
        if parent != created:  # a concurrent experiment created the sweep's run first
            client.delete_run(created)
    return parent


def first_sweep_run(client: MlflowClient, experiment_id: str, baseline: str) -> str | None:
    """Return the id of the oldest sweep run for a commit, or None if there is no such run."""
    runs = client.search_runs([experiment_id], f"tags.sweep = '{baseline}'", max_results=1, order_by=OLDEST_FIRST)
    return runs[0].info.run_id if runs else None
