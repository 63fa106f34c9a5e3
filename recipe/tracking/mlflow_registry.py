"""Registers an adapter as a model version in MLflow, and logs the adapter's evaluation to the MLflow run.

Each version stores the validation losses and the lineage as tags, and may have the alias `champion`. The MLflow run
contains the reports and the generated answers. A version also contains the evidence of where its adapter comes from.
"""

import shutil
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import mlflow
from mlflow.entities import Metric

from recipe.register.promotion import ALIAS, Candidate
from recipe.register.stage import Adapter
from recipe.text.templates import TEMPLATES
from recipe.tracking.journal import now
from recipe.tracking.mlflow_run import Tracker
from recipe.tracking.replay import log_missing
from recipe.tracking.server import explained
from recipe.tracking.signature import python_environment, requirements, signature
from recipe.tracking.sync import send, send_pending
from recipe.tracking.versions import download_row_scores

GENERATIONS = "generations.json"  # the artifact that the UI shows as a table
PACKAGE = Path(__file__).resolve().parents[1]
STATEMENT_TAG, KEY_TAG = "statement_sha256", "signing_key_sha256"


class Evidence(Protocol):
    """The files that prove where an adapter comes from (provenance/evidence.py)."""

    @property
    def signing_key(self) -> str | None:
        """The sha256 of the public key, or None if versions are not signed."""

    def write(self, folder: Path, card: str) -> str:
        """Write the files to a folder, and return the sha256 of the statement."""

    def sign(self, folder: Path, signature: Path) -> None:
        """Sign all files in a folder, and write the signature to a file."""


class MlflowRegistry(Tracker):
    """A tracker that also registers adapters.

    `run` contains the experiment_id and the run_id of the adapter that was registered last.
    """

    run: dict[str, str]

    def __init__(
        self, repository: Path, experiment: str, run_facts: dict[str, Any], evidence: Evidence | None = None
    ) -> None:
        """Configure MLflow without connecting to the server. `evidence` is stored with each version."""
        super().__init__(repository, experiment, run_facts)
        self.evidence = evidence

    def add_version(self, adapter: Adapter) -> str:
        """Register the adapter, log its evaluation, and return its version number.

        If the adapter is already registered, only update the tags and the evidence of its newest version.
        """
        self.check_server()
        with self.registering():
            versions = self.client.search_model_versions(
                f"name = '{adapter.name}' and tags.adapter_sha256 = '{adapter.tags['adapter_sha256']}'"
            )
            if versions:
                version = max(versions, key=lambda version: int(version.version))
                self.run = {"experiment_id": self.experiment_id(), "run_id": str(version.run_id)}
                self._update(version, adapter)
                return str(version.version)
            run = self.client.get_run(self.find_run(finished=True) or self._untracked_run(adapter))
            run_id = run.info.run_id
            self.run = {"experiment_id": run.info.experiment_id, "run_id": run_id}
            log_missing(self.client, run, curve_points(adapter.curve))
            scores = {name: value for name, value in adapter.metrics.items() if run.data.metrics.get(name) != value}
            mlflow.start_run(run_id, log_system_metrics=False)
            try:
                mlflow.log_metrics(scores)
                mlflow.log_artifacts(str(adapter.report), "evaluation")
                mlflow.log_artifacts(str(adapter.analysis), "analysis")
                mlflow.log_artifacts(str(adapter.ledger), "training")
                # log_table appends rows. If an earlier attempt failed after this step, the run already has the table.
                logged = {artifact.path for artifact in self.client.list_artifacts(run_id)}
                if adapter.generations and GENERATIONS not in logged:
                    mlflow.log_table(_columns(adapter.generations), GENERATIONS)
                mlflow.set_tag("mlflow.note.content", adapter.card)
                version = self._log_model(adapter)
            finally:
                mlflow.end_run()
            return version

    def registering(self) -> AbstractContextManager[None]:
        """Explain MLflow's errors in the block as errors of the registration."""
        advice = (
            f"The adapter is safe in the recipe folder. {self.server.remedy()} Then run `dvc repro`, which continues "
            "with the register stage."
        )
        return explained(self.server, "could not register the adapter", advice)

    def check_server(self) -> None:
        """Send what MLflow does not have of earlier trainings. Raises TrackingError if the server does not answer."""
        with self.registering():
            self.server.check_answer()
            for error in send_pending(self.server, print)[1]:
                print(f"note: {error}")

    def _untracked_run(self, adapter: Adapter) -> str:
        """Return the run of a training that MLflow has only in part or, if the adapter is from a cache, not at all."""
        if run_id := self.find_run(finished=False):
            return run_id
        journal = self.new_journal()
        journal.end("FINISHED")
        send(self.server, journal)
        run_id = self.find_run(finished=True)
        assert run_id
        return run_id

    def _update(self, version: Any, adapter: Adapter) -> None:
        """Update the tags of an existing version, and its evidence if that is incomplete.

        The evidence is complete if the version was registered from a commit that contains everything. A signed version
        changes only together with its signature.
        """
        tags, signed_by = dict(adapter.tags), version.tags.get(KEY_TAG)
        if self.evidence:
            key, model_id = self.evidence.signing_key, version.source.removeprefix("models:/")
            is_complete = STATEMENT_TAG in version.tags and version.tags.get("git_clean") == "yes"
            with tempfile.TemporaryDirectory() as folder:
                artifacts = Path(folder) / "artifacts"
                sha256 = self.evidence.write(artifacts / "provenance", adapter.card)
                is_new = not is_complete and sha256 != version.tags.get(STATEMENT_TAG)
                if is_new and signed_by and not key:
                    print(
                        f"note: version {version.version} is signed, and RECIPE_SIGNING_KEY is not set. Its provenance "
                        "statement was not updated."
                    )
                    is_new = False
                if is_new:
                    tags[STATEMENT_TAG] = sha256
                    (artifacts / "MODEL_CARD.md").write_text(adapter.card, encoding="utf-8")
                    self.client.log_model_artifacts(model_id, folder)
                else:
                    tags = {name: value for name, value in tags.items() if name not in self.facts["tags"]}
            if key and (is_new or signed_by != key):
                tags[KEY_TAG] = self._sign(model_id)
        for tag, value in tags.items():
            self.client.set_model_version_tag(adapter.name, version.version, tag, value)

    def _sign(self, model_id: str) -> str:
        """Sign the files of a model as they are in the store, and return the sha256 of the public key."""
        assert self.evidence and self.evidence.signing_key, "no key"
        with tempfile.TemporaryDirectory() as folder:
            model, signature = Path(folder).resolve() / "adapter", Path(folder).resolve() / "model.sig"
            model.mkdir()  # the signature contains the name of this folder
            mlflow.artifacts.download_artifacts(f"models:/{model_id}", dst_path=str(model))
            self.evidence.sign(model, signature)
            self.client.log_model_artifact(model_id, str(signature))
        return self.evidence.signing_key

    def _log_model(self, adapter: Adapter) -> str:
        tags = dict(adapter.tags)
        with tempfile.TemporaryDirectory() as folder:
            card = Path(folder) / "MODEL_CARD.md"
            card.write_text(adapter.card, encoding="utf-8")
            evidence = {}
            if self.evidence:
                tags[STATEMENT_TAG] = self.evidence.write(Path(folder) / "provenance", adapter.card)
                evidence["provenance"] = str(Path(folder) / "provenance")
            info = mlflow.pyfunc.log_model(
                name="adapter",
                python_model=str(PACKAGE / "tracking" / "pyfunc_model.py"),
                artifacts={
                    "code": str(shutil.copytree(PACKAGE, Path(folder) / "recipe", ignore=only_python)),
                    "adapter": str(adapter.folder),
                    "tokenizer": str(adapter.tokenizer),
                    "base_manifest": str(adapter.base_manifest),
                    "prepared_meta": str(adapter.prepared_meta),
                    "training": str(adapter.training),
                    "model_card": str(card),
                    **evidence,
                },
                signature=signature(adapter.template),
                input_example=[TEMPLATES[adapter.template].EXAMPLE],
                pip_requirements=requirements(),
                metadata=adapter.tags,
            )
            environment = Path(folder) / "python_env.yaml"
            environment.write_text(python_environment(), encoding="utf-8")
            self.client.log_model_artifact(info.model_id, str(environment))
        if self.evidence and self.evidence.signing_key:
            tags[KEY_TAG] = self._sign(info.model_id)
        version = str(mlflow.register_model(info.model_uri, adapter.name, tags=tags).version)
        self.client.update_model_version(adapter.name, version, adapter.headline)
        return version

    def champion(self, name: str) -> Candidate | None:
        """Return the version with the alias `champion`, or None if no version has the alias."""
        with self.registering():
            if ALIAS not in self.client.get_registered_model(name).aliases:
                return None
            version = self.client.get_model_version_by_alias(name, ALIAS)
            with tempfile.TemporaryDirectory() as folder:
                return Candidate(
                    str(version.version), version.tags,
                    download_row_scores(self.client, str(version.run_id), Path(folder)),
                )  # fmt: skip

    def record_promotion(self, name: str, version: str, sentence: str, *, moves: bool) -> None:
        """Store `sentence` as a tag of the version, and in its description, after the headline.

        The sentence says why the alias moves or stays. If `moves` is true, the alias moves to the version.
        """
        with self.registering():
            headline = (self.client.get_model_version(name, version).description or "").partition("\n")[0]
            self.client.update_model_version(name, version, f"{headline}\n\n{sentence[:1].upper()}{sentence[1:]}.")
            self.client.set_model_version_tag(name, version, "promotion", sentence)
            if moves:
                self.client.set_registered_model_alias(name, ALIAS, version)


def only_python(folder: str, names: list[str]) -> list[str]:
    """Return the names that copytree ignores when it copies the package into a version.

    Only Python files and package folders are copied.
    """
    return [name for name in names if not name.endswith(".py") and ("." in name or name == "__pycache__")]


def curve_points(curve: list[dict[str, float]]) -> list[Metric]:
    """Return the points of a loss curve, which a complete run contains."""
    return [
        Metric(f"train/{name}", value, now(), int(point["step"]))
        for point in curve for name, value in point.items() if name != "step"
    ]  # fmt: skip


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}
