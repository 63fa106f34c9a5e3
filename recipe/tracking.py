"""MLflow: one run a training, and the registry of adapters. With served.py, the only file that imports mlflow.

The store is MLFLOW_TRACKING_URI where that is set, else SQLite in mlflow/ of the repository. A server that is away
never stops a training: the run is then made afterwards, by register, from the loss curve and the metrics.
"""

import importlib.metadata
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

# No message to MLflow's makers; no pickle from an artifact; a dead server is given up after seconds, not minutes.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
from mlflow import MlflowClient
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

from recipe.errors import Stopped, TrackingError
from recipe.register import ALIAS, Adapter

# What a store that is away, misspelled or without its driver raises.
AWAY = (MlflowException, ImportError, OSError)

SYSTEM_METRICS_SECONDS = 5
EXAMPLES = {
    "alpaca": {"instruction": "What is the sum of the numbers?", "input": "12 + 30"},
    "text": {"text": "Once upon a time"},
    "chat": {"instruction": "Name three colours."},
    "alpaca_chat": {"instruction": "What is the sum of the numbers?", "input": "12 + 30"},
}
MAX_PARAM_CHARS = 6000  # the store's limit
PACKAGES = ("mlflow", "numpy", "peft", "safetensors", "tokenizers", "torch", "transformers")


class Tracker:
    """One experiment on one tracking server. Opens no connection before it is used."""

    def __init__(self, repository: Path, experiment: str, run_facts: dict[str, Any]) -> None:
        """`run_facts`: name, fingerprint, params ({key: value}), tags and datasets ([{name, digest, context}])."""
        self.repository, self.experiment, self.facts = repository, experiment, run_facts
        store = repository / "mlflow"
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{store / 'mlflow.db'}"
        self.artifacts = None if os.environ.get("MLFLOW_TRACKING_URI") else (store / "artifacts").as_uri()
        if self.artifacts:
            store.mkdir(exist_ok=True)
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_system_metrics_sampling_interval(SYSTEM_METRICS_SECONDS)

    @cached_property
    def client(self) -> MlflowClient:
        """The client, made at its first use."""
        return MlflowClient(self.uri)

    def experiment_id(self) -> str:
        """The experiment's id; it is made where it is missing."""
        found = self.client.get_experiment_by_name(self.experiment)
        if found is None:
            return self.client.create_experiment(self.experiment, artifact_location=self.artifacts)
        if found.lifecycle_stage == "deleted":
            raise TrackingError(
                f"the MLflow experiment {self.experiment!r} was deleted. Restore it "
                f"(`mlflow experiments restore -x {found.experiment_id}`) or change registry.experiment."
            )
        return found.experiment_id

    def find_run(self, *, finished: bool) -> str | None:
        """The newest run of this training that ended well, or that was cut off or stopped."""
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
        """Start a run, or go on with one, with its params, tags and datasets; its id."""
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
            mlflow.set_tags({**self.facts["tags"], "fingerprint": self.facts["fingerprint"]})
            for dataset in self.facts["datasets"]:
                source = CodeDatasetSource(tags={"mlflow.source.name": dataset["name"]})
                mlflow.log_input(
                    MetaDataset(source, name=dataset["name"], digest=dataset["sha256"][:36]),
                    context=dataset["context"],
                    tags={"sha256": dataset["sha256"]},
                )
        return run.info.run_id

    @contextmanager
    def training(self) -> Iterator[Callable[[dict[str, float], int], None]]:
        """A run for the block, and the function that logs numbers at a step to it. Goes on without the server."""
        alive = True

        def tell(error: Exception) -> None:
            nonlocal alive
            alive = False
            reason = _first_line(error)
            print(f"MLflow at {_shown(self.uri)} does not answer; register will log this training. ({reason})")

        def log(values: dict[str, float], step: int) -> None:
            if not alive:
                return
            try:
                mlflow.log_metrics({f"train/{name}": value for name, value in values.items()}, step=step)
            except AWAY as error:
                tell(error)

        try:
            run_id = self.start(self.find_run(finished=False), system_metrics=True)
            print(f"MLflow run: {self.link(run_id)}")
        except AWAY as error:
            tell(error)
        status = "FAILED"
        try:
            yield log
            # A run with a gap does not count: register makes a whole one from the curve.
            status = "FINISHED" if alive else "FAILED"
        except Stopped:
            status = "KILLED" if alive else "FAILED"
            raise
        finally:
            if mlflow.active_run():
                try:
                    mlflow.end_run(status)
                except AWAY as error:
                    tell(error)

    def link(self, run_id: str) -> str:
        """Where to look at a run."""
        if self.uri.startswith("http"):
            return f"{_shown(self.uri)}/#/experiments/{self.experiment_id()}/runs/{run_id}"
        return f"{self.facts['name']} in experiment {self.experiment} (`make mlflow-ui` opens it)"

    def add_version(self, adapter: Adapter) -> str:
        """Register the adapter with its run, or find the version that it already is; the version's number."""
        with _explained(self.uri):
            found = self.client.search_model_versions(
                f"name = '{adapter.name}' and tags.adapter_sha256 = '{adapter.tags['adapter_sha256']}'"
            )
            if found:
                version = max(found, key=lambda one: int(one.version))
                for tag, value in adapter.tags.items():
                    self.client.set_model_version_tag(adapter.name, version.version, tag, value)
                return str(version.version)
            run_id = self.find_run(finished=True)
            missed = run_id is None
            run_id = self.start(run_id, system_metrics=False)
            try:
                if missed:
                    for point in adapter.curve:
                        step = int(point["step"])
                        mlflow.log_metrics({f"train/{k}": v for k, v in point.items() if k != "step"}, step=step)
                mlflow.log_metrics(adapter.metrics)
                mlflow.log_artifacts(str(adapter.report), "evaluation")
                mlflow.set_tag("mlflow.note.content", adapter.card)
                version = self._log_model(adapter)
            finally:
                mlflow.end_run()
            return version

    def _log_model(self, adapter: Adapter) -> str:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            # It would have type hints decide the schema; served.py has none, and the signature is given. (A filter
            # set when this file is loaded loses to those that MLflow's own imports set later.)
            warnings.filterwarnings("ignore", message=".*Add type hints to the `predict` method.*")
            example = EXAMPLES[adapter.template]
            card = Path(folder) / "MODEL_CARD.md"
            card.write_text(adapter.card, encoding="utf-8")
            info = mlflow.pyfunc.log_model(
                name="adapter",
                python_model=str(self.repository / "recipe" / "served.py"),
                code_paths=[str(self.repository / "recipe")],
                artifacts={
                    "adapter": str(adapter.folder),
                    "tokenizer": str(adapter.tokenizer),
                    "base_manifest": str(adapter.base_manifest),
                    "prepared_meta": str(adapter.prepared_meta),
                    "training": str(adapter.training),
                    "model_card": str(card),
                },
                signature=ModelSignature(
                    inputs=Schema([ColSpec("string", name, required=name != "input") for name in example]),
                    outputs=Schema([ColSpec("string")]),
                    params=ParamSchema([ParamSpec("max_new_tokens", "long", 256)]),
                ),
                input_example=[example],
                pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in PACKAGES],
                metadata=adapter.tags,
            )
        return str(mlflow.register_model(info.model_uri, adapter.name, tags=adapter.tags).version)

    def champion(self, name: str) -> tuple[str, dict[str, str]] | None:
        """The version under the alias and its tags, or None."""
        with _explained(self.uri):
            if ALIAS not in self.client.get_registered_model(name).aliases:
                return None
            version = self.client.get_model_version_by_alias(name, ALIAS)
            return str(version.version), version.tags

    def promote(self, name: str, version: str) -> None:
        """Move the alias to a version."""
        with _explained(self.uri):
            self.client.set_registered_model_alias(name, ALIAS, version)


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """MLflow's errors as one line."""
    try:
        yield
    except AWAY as error:
        reason = _first_line(error)
        raise TrackingError(
            f"MLflow at {_shown(uri)} could not register the adapter: {reason}. The adapter is safe in the recipe "
            "folder; run `dvc repro` again when the server answers."
        ) from None


def _first_line(error: Exception) -> str:
    """The head of MLflow's message, without the password that an address may hold."""
    return re.sub(r"//[^/@\s]+@", "//", str(error).strip().splitlines()[0])[:200]


def _shown(uri: str) -> str:
    """The address without a password."""
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://{rest.rsplit('@', 1)[-1]}"
