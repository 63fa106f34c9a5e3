"""Finds a registered version and downloads its files, for `recipe provenance` and `recipe export`."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

from recipe.core.errors import ParamsError, TrackingError
from recipe.report.row_scores import FILE as ROW_SCORES
from recipe.report.row_scores import RowSets, read_row_scores
from recipe.tracking.server import Server, explained
from recipe.tracking.settings import URI, default_store

ADDRESS = re.compile(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))")


@dataclass(frozen=True)
class Version:
    """A registered version. `run` contains the tags of its run, or is None if the run was deleted."""

    name: str
    number: str
    tags: dict[str, str]
    run_id: str
    run: dict[str, str] | None
    run_name: str
    folder: Path  # the downloaded files


def find_version(address: str, repository: Path) -> tuple[Server, Any]:
    """Return the server, and MLflow's entry for `models:/NAME@ALIAS` or `models:/NAME/NUMBER`.

    Raises ParamsError if the address is invalid, and TrackingError if there is no such version.
    """
    match = ADDRESS.fullmatch(address)
    if not match:
        raise ParamsError(f"{address!r} is not a registered version. Write models:/NAME@champion or models:/NAME/1.")
    if not os.environ.get(URI) and not (default_store(repository) / "mlflow.db").is_file():
        raise TrackingError(f"there is no MLflow store in {repository}. Set {URI} to the server with the version.")
    server = Server(repository)
    name, alias, number = match.groups()
    with explained(server, f"has no {address}", f"{URI} selects the server."):
        client = server.client
        return server, (
            client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
        )


def download_version(address: str, repository: Path, folder: Path) -> Version:
    """Download the files of `models:/NAME@ALIAS` or `models:/NAME/NUMBER` to a folder.

    Raises ParamsError if the address is invalid, and TrackingError if there is no such version.
    """
    server, version = find_version(address, repository)
    name = str(version.name)
    with explained(server, "failed", "Run the command again when the server is reachable."):
        run_tags, run_name = _run(server.client, str(version.run_id))
        files = mlflow.artifacts.download_artifacts(f"models:/{name}/{version.version}", dst_path=str(folder))
    return Version(name, str(version.version), dict(version.tags), str(version.run_id), run_tags, run_name, Path(files))


def _run(client: MlflowClient, run_id: str) -> tuple[dict[str, str] | None, str]:
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise
        return None, ""
    is_deleted = run.info.lifecycle_stage == "deleted"
    return None if is_deleted else dict(run.data.tags), str(run.info.run_name)


def download_answers(version: Version, repository: Path, folder: Path) -> Path:
    """Download the validation rows with their answers, which the register stage logged to the version's run."""
    server, name = Server(repository), "evaluation/generations.jsonl"
    with explained(server, f"has no {name} in the run of the version", "Was the run deleted?"):
        return Path(mlflow.artifacts.download_artifacts(
            run_id=version.run_id, artifact_path=name, dst_path=str(folder), tracking_uri=server.uri
        ))  # fmt: skip


def download_row_scores(client: MlflowClient, run_id: str, folder: Path) -> RowSets:
    """Return the scores of each row, which the register stage logged to a version's run.

    Returns no rows if the run has none: it is deleted, or it was logged by an early version of this project.
    """
    try:
        names = {artifact.path for artifact in client.list_artifacts(run_id, "evaluation")}
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise
        return {}
    name = f"evaluation/{ROW_SCORES}"
    return read_row_scores(Path(client.download_artifacts(run_id, name, str(folder)))) if name in names else {}


def log_folder(server: Server, run_id: str, folder: Path, name: str) -> None:
    """Add the files of a folder to the artifacts of a run. Raises TrackingError if the server does not answer."""
    with explained(server, "failed", "Run the command again when the server is reachable."):
        server.check_answer()
        server.client.log_artifacts(run_id, str(folder), name)
