"""The registered model as other programs use it: chats, tools, other environments, and a repository that was moved."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from registered import run_register, tracker
from test_chats import tokenizer  # noqa: F401 - a fixture
from test_formats import HISTORY, llama_factory, openai
from test_messages import OPENAI, WEATHER

from recipe.core.errors import DataError, TrackingError
from recipe.register.stage import plain
from recipe.text.chat_rows import AlpacaChat, Chat
from recipe.text.chat_templates import ChatTemplate
from recipe.text.rows import Row
from recipe.tracking.moved_store import correct_paths
from recipe.tracking.settings import check_uri

USER = {"role": "user", "content": "Rain?"}
COLUMNS = {"messages": "messages", "tools": "tools"}


@pytest.fixture
def chat_model(prepared, evaluated, fetched_base, store, tmp_path, monkeypatch):
    """A registered adapter that was trained on chats with tools; returns the folder with the stages' outputs."""
    prepared([openai(n) for n in range(40)], template="chat", chat_template="plain", columns=COLUMNS, max_length=512)
    folder = evaluated(micro_batch_tokens=1024)
    run_register(folder, fetched_base, tracker(store))
    monkeypatch.chdir(tmp_path)
    return folder


def test_the_registered_chat_model_answers_chats_with_history_and_tools(chat_model):
    import mlflow
    import pandas

    model = mlflow.pyfunc.load_model("models:/tiny@champion")
    assert str(model.metadata.signature.inputs) == (
        "['messages': Array(Map(str -> Any)) (optional), 'instruction': string (optional), 'input': string (optional), "
        "'system': string (optional), 'tools': Any (optional)]"
    )
    history = [OPENAI[0], USER, {"role": "assistant", "content": "Where?"}, {"role": "user", "content": "Paris."}]
    rows = [
        {"messages": history[:2]}, {"messages": history}, {"messages": history[:2], "tools": [WEATHER]},
        {"messages": [USER], "system": "Be brief."}, {"messages": OPENAI[:4], "tools": json.dumps([WEATHER])},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Rain?"}], "name": "Ann"}]},
    ]  # fmt: skip
    limit = {"max_new_tokens": 12}
    answers = [model.predict([row], limit)[0] for row in rows]
    assert model.predict(rows, limit) == model.predict(pandas.DataFrame(rows), limit) == answers
    frame = pandas.DataFrame([{**rows[0], "tools": pandas.NA}, rows[2]])
    assert model.predict(frame, limit) == [answers[0], answers[2]]
    assert answers[0] == answers[3] and len(set(answers)) > 1
    assert model.predict({"messages": [USER]}, limit) == model.predict([{"instruction": "Rain?"}], limit)
    for row, reason in (
        ({"messages": [USER, {"role": "assistant", "content": "No."}]}, "the last message is from the assistant"),
        ({"messages": [{"role": "king", "content": "a"}]}, "message 1 has the unknown role 'king'"),
        ({"messages": [USER], "instruction": "a"}, "both messages and instruction"),
        ({"messages": []}, "messages is not a list of objects"),
        ({"messages": [USER], "tools": "{"}, "the tools are not valid JSON"),
        ({"text": "a"}, "they have none of the keys that the model's signature names"),
    ):
        with pytest.raises(mlflow.exceptions.MlflowException, match=reason):
            model.predict([row])


def test_the_model_reads_the_prompt_of_the_training_row(tokenizer):  # noqa: F811
    chatml = ChatTemplate(tokenizer, "chatml")
    template = Chat(COLUMNS, chatml)
    turns = template.convert(Row(openai(3), "f", "line 1")).turns
    asked = {"messages": openai(3)["messages"][:2], "tools": [WEATHER]}
    assert template.prompt(asked) == turns[0].prompt
    columns = {name: name for name in (*AlpacaChat.REQUIRED, *AlpacaChat.OPTIONAL)}
    template, row = AlpacaChat(columns, chatml), llama_factory(1)
    turns = template.convert(Row(row, "f", "line 1")).turns
    whole = "".join(turn.prompt + turn.completion + turn.end for turn in turns[:-1]) + turns[-1].prompt
    assert template.prompt({**row, "history": json.dumps(HISTORY)}) == template.prompt(row) == whole
    with pytest.raises(DataError, match="history is not a list of"):
        template.prompt({**row, "history": "a"})


def test_the_requirements_exist_on_the_public_index_and_any_patch_of_python_fits(chat_model):
    import mlflow

    folder = Path(mlflow.artifacts.download_artifacts("models:/tiny@champion"))
    lines = (folder / "requirements.txt").read_text().splitlines()
    assert "torch==2.13.0" in lines and not any("+" in line or "@" in line for line in lines)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"python: '{version}'" in (folder / "python_env.yaml").read_text().splitlines()


@pytest.mark.slow
def test_mlflow_serves_a_version_in_an_environment_of_its_own(chat_model, tmp_path):
    """The requirements are installed into a new environment, and the model answers there as it does here."""
    import mlflow

    links = os.environ.get("PIP_FIND_LINKS") or configured_links()
    if not links:
        pytest.skip("pip has no configured links with a CPU build of torch, and the CUDA build has several GB")
    row = {"messages": [OPENAI[0], USER], "tools": [WEATHER]}
    (tmp_path / "rows.json").write_text(json.dumps({"dataframe_records": [row]}))
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")},
        "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
        "UV_FIND_LINKS": links.replace(" ", ","), "UV_SYSTEM_CERTS": "1", "MLFLOW_DISABLE_TELEMETRY": "true",
        "UV_PYTHON_DOWNLOADS": "never",
        "PATH": f"{Path(sys.executable).parent}:{Path(sys.prefix, 'bootstrap/bin')}:{os.environ['PATH']}",
    }  # fmt: skip
    command = ["mlflow", "models", "predict", "-m", "models:/tiny@champion", "--env-manager", "uv", "--input-path"]
    done = subprocess.run(
        [*command, tmp_path / "rows.json", "--content-type", "json", "--output-path", tmp_path / "answers.json"],
        cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    assert "Creating a new environment in " in done.stdout
    here = mlflow.pyfunc.load_model("models:/tiny@champion").predict([row])
    assert json.loads((tmp_path / "answers.json").read_text())["predictions"] == here


def configured_links():
    """pip's configured links, or an empty text."""
    command = [sys.executable, "-m", "pip", "config", "get", "global.find-links"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def test_versions_load_and_new_ones_are_stored_in_the_new_place_after_a_move(
    evaluated, fetched_base, store, tmp_path, monkeypatch, capsys
):
    import mlflow

    folder = evaluated()
    run_register(folder, fetched_base, tracker(store))
    moved = tmp_path / "my models" / "moved"
    moved.parent.mkdir()
    store.rename(moved)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # MLflow sets this variable itself
    registry = tracker(moved, fingerprint="2" * 64)
    assert registry.client  # its first use corrects the paths
    model = mlflow.pyfunc.load_model("models:/tiny@champion")
    assert len(model.predict([{"instruction": "Go."}], {"max_new_tokens": 2})) == 1
    shutil.rmtree(folder / "adapter")
    run_register(evaluated(num_epochs=2), fetched_base, registry, promote="always")
    assert not list(store.rglob("*"))
    version = registry.client.get_model_version("tiny", "2")
    new = Path(mlflow.artifacts.download_artifacts(f"models:/tiny/{version.version}"))
    assert (new / "MLmodel").is_file() and new.is_relative_to(moved)
    run = registry.client.get_run(version.run_id)
    assert run.info.artifact_uri.startswith((moved / "mlflow" / "artifacts").as_uri())
    assert not correct_paths(moved / "mlflow") and not correct_paths(tmp_path)
    assert "note: the repository was moved." in capsys.readouterr().err
    assert (moved / "mlflow" / "mlflow.db.before-move").is_file()


def test_existing_paths_and_databases_that_cannot_be_changed_are_kept(evaluated, fetched_base, store, tmp_path, capsys):
    """An experiment with artifacts in another folder of the same name, and a database that another process locks."""
    import sqlite3

    run_register(evaluated(), fetched_base, tracker(store))
    copy = shutil.copytree(store, tmp_path / "copy", symlinks=True)  # the old place still exists
    assert not correct_paths(copy / "mlflow")
    shutil.rmtree(store / "mlflow" / "artifacts")
    with sqlite3.connect(copy / "mlflow" / "mlflow.db") as lock:
        lock.execute("BEGIN EXCLUSIVE")
        assert not correct_paths(copy / "mlflow")
    assert "were not checked after a possible move" in capsys.readouterr().err
    (copy / "mlflow" / "mlflow.db").write_bytes(b"not a database" * 100)
    assert not correct_paths(copy / "mlflow")


def test_variables_of_other_programs_do_not_change_a_run(store):
    code = """
import sys
from pathlib import Path
import registered
tracker = registered.tracker(Path(sys.argv[1]))
with tracker.training() as log:
    log({"loss": 1.0}, 1)
run = tracker.client.get_run(tracker.find_run(finished=True))
print(run.data.metrics["train/loss"], tracker.client.get_experiment(run.info.experiment_id).name)
print(tracker.client._registry_uri == tracker.uri)
"""
    names = ["RUN_ID", "EXPERIMENT_ID", "EXPERIMENT_NAME", "REGISTRY_URI", "ACTIVE_MODEL_ID", "ENABLE_ASYNC_LOGGING"]
    others = {f"MLFLOW_{name}": "77" for name in names} | {"MLFLOW_REGISTRY_URI": "sqlite:///elsewhere.db"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")} | others
    command = [sys.executable, "-c", code, store]
    done = subprocess.run(
        command, cwd=ROOT / "tests", env={**environment, "PYTHONPATH": str(ROOT)}, text=True, capture_output=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"note: {', '.join(sorted(others))} from the environment are ignored." in done.stdout
    assert done.stdout.splitlines()[-2:] == ["1.0 tests", "True"]


@pytest.mark.parametrize("module", ["mlflow_registry", "versions"])
def test_telemetry_is_disabled_before_mlflow_is_imported(module):
    """With telemetry, MLflow sets a variable when it is imported, and the note about ignored variables names it."""
    code = f"import recipe.tracking.{module}; from recipe.tracking import IGNORED; print(IGNORED)"
    environment = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME")}  # no CI, no pytest
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, text=True, capture_output=True, check=False
    )
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("uri", ["file:./mlruns", "file:///tmp/mlruns", "./mlruns", "mlruns"])
def test_a_store_of_files_is_refused_with_mlflows_way_out(store, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    folder = uri.removeprefix("file:").removeprefix("//")
    told = rf"`mlflow migrate-filestore --source {folder} --target sqlite:///mlflow.db`"
    with pytest.raises(TrackingError, match=told), tracker(store).training():
        pass
    with pytest.raises(TrackingError, match=told):
        tracker(store).champion("tiny")


def test_a_store_of_files_that_mlflow_allows_is_used(store, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow_tracker = tracker(store)
    with mlflow_tracker.training() as log:
        log({"loss": 1.0}, 1)
    assert mlflow_tracker.find_run(finished=True)
    for uri in ("http://127.0.0.1:5000", "sqlite:///a.db", "postgresql://a@b/c", "databricks", "databricks://profile"):
        check_uri(uri)


def test_a_model_and_categories_in_another_script_are_registered(store, evaluated, fetched_base, server):
    import mlflow

    from recipe.register.params import RegistryParams

    RegistryParams(name="模型-é", experiment="проба", promote="always", general_margin=0.05)
    registry = tracker(store)
    registry.experiment = "проба"
    run_register(evaluated(), fetched_base, registry, name="模型-é")
    metrics = {f"eval/exact_match_by_category/{name}": 0.5 for name in plain(["数学", "历史", "Q&A"]).values()}
    with registry.training() as log:
        log(metrics, 1)
    assert len(mlflow.pyfunc.load_model("models:/模型-é@champion").predict([{"instruction": "Go."}])) == 1
