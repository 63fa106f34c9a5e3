"""Fixtures for tests of the registry: a store in a temporary folder, and adapters to register."""

import pytest
from runs import ROOT, mlflow_server

from recipe.register.params import RegistryParams
from recipe.register.stage import register


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A repository folder for MLflow's store, with the code that is logged as an artifact."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "recipe").symlink_to(ROOT / "recipe")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    # On a slow machine, a training would leave a journal. tests/test_sync.py tests the real limit.
    monkeypatch.setattr("recipe.tracking.live.LOST_SECONDS", 60)
    return folder


def tracker(store, fingerprint="f" * 64, **changes):
    from recipe.tracking.mlflow_registry import MlflowRegistry

    facts = {
        "name": "tiny-r4",
        "fingerprint": fingerprint,
        "params": {"lora.r": 4, "data.sha256": None, "long": "x" * 7000},
        "tags": {"git_commit": "abc"},
        "datasets": [{"name": "train.jsonl", "sha256": "a" * 64, "context": "train"}],
    }
    return MlflowRegistry(store, "tests", {**facts, **changes})


@pytest.fixture
def evaluated(trained, fetched_base, tmp_path):
    """Run the stages before register; returns the folder with their outputs."""

    def make(**changes):
        from conftest import evaluate_in

        folder = trained(**changes)
        evaluate_in(folder, fetched_base, max_generations=2, max_new_tokens=4, batch_tokens=1000)
        return folder

    return make


def run_register(folder, fetched_base, registry, promote="if_better", name="tiny"):
    from conftest import paths_in

    return register(
        RegistryParams(name=name, experiment="tests", promote=promote, general_margin=0.05),
        paths_in(folder, base=fetched_base, analysis=folder / "prepared"),  # analysis: any folder with files to log
        lineage={"git_commit": "abc", "fingerprint": registry.facts["fingerprint"]},
        registry=registry,
    )


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A real MLflow server."""
    with mlflow_server(tmp_path / "server.db", tmp_path / "a") as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri
