"""MLflow with a real SQLite store in a temporary folder, and with a real server on loopback."""

import json
import shutil
import signal
import socket
from pathlib import Path

import pytest
from conftest import edit, plain_base
from registered import run_register, tracker

from recipe.core.errors import Stopped, TrackingError
from recipe.core.paths import home
from recipe.model.generate import answer_rows
from recipe.model.load import load_adapter
from recipe.tokens.tokenizer import load_tokenizer
from recipe.tracking import replay
from recipe.tracking.replay import Replay, first_sweep_run, sweep_run


def test_a_training_is_one_run_with_params_datasets_and_curve(store):
    mlflow_tracker = tracker(store)
    with mlflow_tracker.training() as log:
        for step in (2, 4):
            log({"loss": 3.0 - step / 10, "tokens_per_second": 9.0}, step)
    run = mlflow_tracker.client.get_run(mlflow_tracker.find_run(finished=True))
    assert run.data.params["lora.r"] == "4" and len(run.data.params["long"]) == 6000
    assert run.data.tags["git_commit"] == "abc" and run.data.tags["fingerprint"] == "f" * 64
    curve = mlflow_tracker.client.get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in curve] == [(2, 2.8), (4, 2.6)]
    [dataset] = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("train.jsonl", "a" * 36)
    assert {tag.key: tag.value for tag in dataset.tags}["sha256"] == "a" * 64


def test_a_killed_training_resumes_in_its_run_and_a_failed_one_is_marked(store):
    mlflow_tracker = tracker(store)
    journal = mlflow_tracker.new_journal()
    Replay(mlflow_tracker.server, journal, live=True).send()
    journal.close()  # never ended
    killed = mlflow_tracker.find_run(finished=False)
    with mlflow_tracker.training() as log:
        log({"loss": 1.0}, 1)
    assert mlflow_tracker.find_run(finished=True) == killed and mlflow_tracker.find_run(finished=False) is None
    with pytest.raises(Stopped), mlflow_tracker.training():
        raise Stopped("stopped", signal.SIGTERM)
    stopped = mlflow_tracker.find_run(finished=False)
    assert mlflow_tracker.client.get_run(stopped).info.status == "KILLED"
    with mlflow_tracker.training():
        pass
    assert mlflow_tracker.client.get_run(stopped).info.status == "FINISHED"
    with pytest.raises(ZeroDivisionError), mlflow_tracker.training():
        raise ZeroDivisionError
    runs = mlflow_tracker.client.search_runs([mlflow_tracker.experiment_id()])
    assert sorted(run.info.status for run in runs) == ["FAILED", "FINISHED", "FINISHED"]


def test_experiments_from_one_commit_are_children_of_one_sweep(store, monkeypatch):
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "a" * 40)
    runs = []
    for number in range(2):
        monkeypatch.setenv("DVC_EXP_NAME", f"exp-{number}")
        mlflow_tracker = tracker(store, fingerprint=str(number) * 64)
        with mlflow_tracker.training():
            pass
        runs.append(mlflow_tracker.client.get_run(mlflow_tracker.find_run(finished=True)))
    [parent] = {run.data.tags["mlflow.parentRunId"] for run in runs}
    assert [run.data.tags["dvc_experiment"] for run in runs] == ["exp-0", "exp-1"]
    sweep = mlflow_tracker.client.get_run(parent)
    assert sweep.info.run_name == "sweep from aaaaaaa" and sweep.info.status == "FINISHED"
    monkeypatch.delenv("DVC_EXP_BASELINE_REV")
    mlflow_tracker = tracker(store, fingerprint="9" * 64)
    with mlflow_tracker.training():
        pass
    assert "mlflow.parentRunId" not in mlflow_tracker.client.get_run(mlflow_tracker.find_run(finished=True)).data.tags


def test_experiments_that_start_concurrently_share_one_sweep(store, monkeypatch):
    mlflow_tracker = tracker(store)
    client, experiment_id = mlflow_tracker.client, mlflow_tracker.experiment_id()
    parent = sweep_run(client, experiment_id, "b" * 40)
    results = iter([None])  # the first lookup of the second experiment happened before the first one created the sweep
    monkeypatch.setattr(replay, "first_sweep_run", lambda *given: next(results, first_sweep_run(*given)))
    assert sweep_run(client, experiment_id, "b" * 40) == parent
    assert len(client.search_runs([experiment_id], "tags.sweep LIKE '%'")) == 1


def test_an_experiment_uses_the_store_of_the_repository_that_started_it(store):
    (store / "requirements").mkdir()
    inside = store / ".dvc" / "tmp" / "exps" / "tmp123"
    (inside / "requirements").mkdir(parents=True)
    assert home(inside) == home(store) == store.resolve()
    assert tracker(inside).uri == f"sqlite:///{store.resolve() / 'mlflow' / 'mlflow.db'}"


def test_training_continues_if_the_server_is_unreachable(store, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with tracker(store).training() as log:
        log({"loss": 1.0}, 1)
    output = capsys.readouterr().out
    assert "`recipe sync` and the register stage send it." in output and "secret" not in output
    [journal] = (store / "mlflow" / "pending").iterdir()
    assert "secret" not in journal.read_text()


def test_the_adapter_is_registered_once_and_answers_as_before(evaluated, fetched_base, store, monkeypatch, tmp_path):
    import mlflow

    folder = evaluated(num_epochs=2)
    registry = tracker(store)
    assert run_register(folder, fetched_base, registry).startswith("version 1 is the first champion: validation loss ")
    assert run_register(folder, fetched_base, registry) == "version 1 is already the champion"
    # Training was not tracked here, so register created the run from the loss curve.
    run_id = registry.find_run(finished=True)
    points = registry.client.get_metric_history(run_id, "train/loss")
    assert len(points) == len((folder / "loss.csv").read_text().splitlines()) - 1
    assert registry.run == {"experiment_id": registry.experiment_id(), "run_id": run_id}
    version = registry.client.get_model_version("tiny", "1")
    assert version.tags["base_id"] == "tiny" and version.tags["git_commit"] == "abc" and version.run_id == run_id
    # The UI shows the headline, the answers as a table, and the reports.
    assert version.description.startswith("The adapter is ")
    assert version.tags["promotion"].startswith("version 1 is the first champion: validation loss ")
    headline, _, promotion = version.description.partition("\n\n")
    assert promotion == f"V{version.tags['promotion'][1:]}."
    assert headline in registry.client.get_run(run_id).data.tags["mlflow.note.content"]
    answers = registry.client.load_table(registry.experiment_id(), "generations.json", run_ids=[run_id])
    assert len(answers) == 2 and {"asked", "wanted", "base", "adapter", "adapter is right"} <= set(answers.columns)
    artifacts = {artifact.path for artifact in registry.client.list_artifacts(run_id)}
    assert {"analysis", "evaluation", "generations.json"} <= artifacts

    monkeypatch.chdir(tmp_path)
    model = mlflow.pyfunc.load_model("models:/tiny@champion")
    manifest, meta = (
        json.loads(path.read_text()) for path in (fetched_base / "manifest.json", folder / "prepared/meta.json")
    )
    tokenizer = load_tokenizer(fetched_base / "tokenizer")
    base = plain_base(Path(manifest["path"]), len(tokenizer))
    rows = [{"instruction": "Say number 3.", "input": "3"}, *({"instruction": f"Go {n}."} for n in range(5))]
    untrained = answer_rows(base, tokenizer, meta, rows, 40)
    expected = answer_rows(load_adapter(base, folder / "adapter", manifest), tokenizer, meta, rows, 40)
    assert model.predict(rows, {"max_new_tokens": 40}) == expected != untrained
    with pytest.raises(mlflow.exceptions.MlflowException, match="the input row needs a non-empty instruction"):
        model.predict([{"instruction": ""}])
    card = Path(mlflow.artifacts.download_artifacts("models:/tiny@champion")) / "artifacts" / "MODEL_CARD.md"
    assert "# A LoRA adapter for tiny" in card.read_text()


@pytest.mark.slow
def test_versions_with_different_code_answer_side_by_side(evaluated, fetched_base, store, tmp_path, monkeypatch):
    import mlflow

    run_register(evaluated(), fetched_base, tracker(store))
    monkeypatch.chdir(tmp_path)
    folder = Path(mlflow.artifacts.download_artifacts("models:/tiny@champion", dst_path=str(tmp_path / "first")))
    other = shutil.copytree(folder, tmp_path / "other")
    edit(
        other / "artifacts/recipe/model/generate.py",
        "skip_special_tokens=True) for",
        "skip_special_tokens=True) + '!' for",
    )
    rows = [{"instruction": f"Say number {n}."} for n in range(4)]
    first = mlflow.pyfunc.load_model(str(folder))
    alone = first.predict(rows, {"max_new_tokens": 20})
    second = mlflow.pyfunc.load_model(str(other))
    assert second.predict(rows, {"max_new_tokens": 20}) == [answer + "!" for answer in alone]
    assert first.predict(rows, {"max_new_tokens": 20}) == alone


def test_loading_with_a_changed_base_is_rejected(evaluated, fetched_base, store, tiny_base, tmp_path, monkeypatch):
    import mlflow

    run_register(evaluated(), fetched_base, tracker(store))
    shutil.copytree(tiny_base, tmp_path / "elsewhere")
    monkeypatch.setenv("RECIPE_BASE_MODEL", str(tmp_path / "elsewhere"))
    mlflow.pyfunc.load_model("models:/tiny@champion")
    weights = tmp_path / "elsewhere" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(Exception, match="does not match the file that was fetched for tiny"):
        mlflow.pyfunc.load_model("models:/tiny@champion")


def test_the_better_adapter_stays_champion(evaluated, fetched_base, store, tmp_path):
    registry = tracker(store)
    run_register(evaluated(num_epochs=4), fetched_base, registry)
    worse = evaluated(num_epochs=1, learning_rate=1e-6)
    assert "version 1 stays the champion" in run_register(worse, fetched_base, registry)
    assert registry.champion("tiny").number == "1"
    promotion = registry.client.get_model_version("tiny", "2").tags["promotion"]
    assert promotion.startswith("version 1 stays the champion: validation loss ")
    assert "version 2 is now the champion" in run_register(worse, fetched_base, registry, promote="always")
    assert registry.champion("tiny").number == "2"


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_a_real_server_stores_the_run_and_the_version_and_serves_the_model(evaluated, fetched_base, store, server):
    import mlflow

    registry = tracker(store)
    with registry.training() as log:
        log({"loss": 1.0}, 1)
    folder = evaluated()
    assert run_register(folder, fetched_base, registry).startswith("version 1 is the first champion: validation loss ")
    assert registry.link(registry.find_run(finished=True)).startswith(f"{server}/#/experiments/")
    model = mlflow.pyfunc.load_model("models:/tiny@champion")
    assert len(model.predict([{"instruction": "Go."}], {"max_new_tokens": 2})) == 1
    receipt = json.loads((folder / "registered.json").read_text())
    assert server not in json.dumps(receipt) and receipt["name"] == "tiny"


def test_registering_fails_in_one_line_if_the_server_is_unreachable(evaluated, fetched_base, store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    folder = evaluated()
    with pytest.raises(TrackingError, match=r"could not register the adapter.*The adapter is safe"):
        run_register(folder, fetched_base, tracker(store))
    assert not (folder / "registered.json").exists()


@pytest.mark.parametrize("uri", ["ftp://example.invalid", "postgresql://user@127.0.0.1/x", "sqlite:////proc/none/x.db"])
def test_an_invalid_address_stops_only_registering(store, monkeypatch, uri, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with tracker(store).training() as log:
        log({"loss": 1.0}, 1)
    assert "is unreachable" in capsys.readouterr().out
    with pytest.raises(TrackingError):
        tracker(store).champion("tiny")


def test_a_model_with_the_text_template_is_registered_and_continues_a_text(evaluated, prepared, fetched_base, store):
    import mlflow

    prepared([{"text": f"row {n} " * 4} for n in range(40)], template="text", columns={"text": "text"})
    run_register(evaluated(), fetched_base, tracker(store))
    model = mlflow.pyfunc.load_model("models:/tiny@champion")
    assert len(model.predict([{"text": "row 3"}], {"max_new_tokens": 2})) == 1
