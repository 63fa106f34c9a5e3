"""MLflow fails during real trainings: absent, frozen, killed, locked or slow. Nothing is lost or sent twice."""

import json
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import ROOT, edit, small_repository
from registered import tracker
from runs import ENVIRONMENT
from servers import Lock, MlflowServer, SlowProxy, free_port

from recipe.cli.commands import main
from recipe.core.errors import DataError
from recipe.core.io import sha256_bytes, sha256_tree
from recipe.tracking import live
from recipe.tracking.replay import TRAINING

pytestmark = pytest.mark.slow
NEW = {TRAINING, "fingerprint"}  # the tags that differ between two trainings


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory):
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def server(shared_server):
    """The running server, whatever an earlier test did to it."""
    if shared_server.process is None:
        shared_server.start()
    yield shared_server
    if shared_server.process:
        shared_server.thaw()


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A repository that is also a recipe folder, for `recipe sync`."""
    folder = small_repository(tmp_path / "repository")
    monkeypatch.chdir(folder)
    return folder


def pending(store):
    return sorted((store / "mlflow" / "pending").glob("*"))


def invoke(*command, code=0):
    result = CliRunner().invoke(main, list(command), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def train(trained, store, tmp_path):
    """Train for real while `fault(step)` is called at each log point; returns the tracker and the lost seconds."""

    def run(fingerprint, fault=lambda step: None):
        mlflow_tracker, waiting = tracker(store, fingerprint=fingerprint), []

        @contextmanager
        def timed():
            started = time.monotonic()
            yield
            waiting.append(time.monotonic() - started)

        training = mlflow_tracker.training()
        with timed():
            log = training.__enter__()

        def log_and_fail(values, step):
            fault(step)
            with timed():
                log(values, step)

        trained(folder=tmp_path / fingerprint[:4], log=log_and_fail, num_epochs=4)
        with timed():
            training.__exit__(None, None, None)
        return mlflow_tracker, sum(waiting)

    return run


def the_run(mlflow_tracker):
    """The only run of a training."""
    query = f"tags.fingerprint = '{mlflow_tracker.facts['fingerprint']}'"
    [run] = mlflow_tracker.client.search_runs([mlflow_tracker.experiment_id()], query)
    return run


def history(mlflow_tracker, run, prefix="train/"):
    """[metric, step, value] of each point."""
    return sorted(
        [key, point.step, point.value]
        for key in run.data.metrics if key.startswith(prefix)
        for point in mlflow_tracker.client.get_metric_history(run.info.run_id, key)
    )  # fmt: skip


def described(mlflow_tracker, run):
    """What a run says about its training, without what differs between two trainings."""
    points = [point for point in history(mlflow_tracker, run) if point[0] != "train/tokens_per_second"]
    datasets = [
        (item.dataset.to_dictionary(), sorted((tag.key, tag.value) for tag in item.tags))
        for item in run.inputs.dataset_inputs
    ]
    tags = {key: value for key, value in run.data.tags.items() if key not in NEW}
    return {
        "status": run.info.status, "name": run.info.run_name, "params": run.data.params, "tags": tags,
        "points": points, "datasets": datasets,
    }  # fmt: skip


HEALTHY = {}


@pytest.fixture
def healthy(server, train, store, monkeypatch, tmp_path):
    """The run and the adapter of a training with a healthy server."""
    if not HEALTHY:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        with monkeypatch.context() as patient:  # on a slow machine, the run is logged live as well
            patient.setattr(live, "START_SECONDS", 60)
            patient.setattr(live, "LOST_SECONDS", 120)
            mlflow_tracker, _ = train("a" * 64)
        assert pending(store) == []
        run = the_run(mlflow_tracker)
        steps = [step for key, step, _ in history(mlflow_tracker, run) if key == "train/loss"]
        assert len(steps) == len(set(steps)) > 10 and run.info.status == "FINISHED"
        HEALTHY.update(run=described(mlflow_tracker, run), adapter=sha256_tree(tmp_path / "aaaa" / "adapter"))
    return HEALTHY


@pytest.fixture
def fault(request, server, store, monkeypatch):
    """Prepare a fault; returns what happens before training, at each log point, and when the fault ends."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    held, nothing = [], lambda *_: None
    if request.param == "absent":
        server.kill()
        yield nothing, nothing, server.start
    elif request.param == "frozen":
        yield server.freeze, nothing, server.thaw
    elif request.param == "killed midway":
        yield nothing, lambda step: server.kill() if step == 10 else None, server.start
    elif request.param == "database of the server locked":
        yield lambda: held.append(Lock(server.database)), nothing, lambda: held[0].release()
    elif request.param == "database locked midway":
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
        tracker(store).experiment_id()  # creates the database

        def lock(step):
            if step == 10:
                held.append(Lock(store / "mlflow" / "mlflow.db"))

        yield nothing, lock, lambda: held[0].release()
    elif request.param == "slow":
        proxy = SlowProxy(server.port, 2.5)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
        yield nothing, nothing, lambda: setattr(proxy, "seconds", 0)
        proxy.close()


FAULTS = ["slow", "frozen", "database of the server locked", "database locked midway", "killed midway", "absent"]


@pytest.mark.parametrize("fault", FAULTS, indirect=True)
def test_training_finishes_and_sync_completes_the_run(request, healthy, fault, train, store, tmp_path, capsys):
    before, at_step, end = fault
    before()
    fingerprint = sha256_bytes(request.node.name.encode())
    faulty, lost = train(fingerprint, at_step)
    assert lost < 10
    assert sha256_tree(tmp_path / fingerprint[:4] / "adapter") == healthy["adapter"]
    [journal] = pending(store)
    output = capsys.readouterr().out
    assert "Traceback" not in output, output
    assert f"{journal} keeps it. `recipe sync`" in output

    end()
    output = invoke("sync")
    assert "sent tiny-r4: FINISHED" in output and faulty.link(the_run(faulty).info.run_id) in output
    assert pending(store) == [] and invoke("sync") == "nothing is pending: MLflow has all that was logged\n"
    assert described(faulty, the_run(faulty)) == healthy["run"]


STEPS, VALUES = 400, 4  # four requests of 500 points, so that a kill hits between two of them


def log_much(store):
    """A training of which the server has received nothing."""
    mlflow_tracker = tracker(store)
    with mlflow_tracker.training() as log:
        for step in range(1, STEPS + 1):
            log({f"value {number}": step / 10 + number for number in range(VALUES)}, step)
    return mlflow_tracker


def test_a_killed_sync_is_repeated_without_duplicates(server, store, monkeypatch):
    proxy = SlowProxy(server.port, 0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    server.freeze()
    log_much(store)
    output = invoke("sync", code=6)
    assert output.count("\n") == 1 and "Nothing is lost. Remaining trainings: 1." in output, output
    assert f"Start the server at {proxy.uri}" in output and len(pending(store)) == 1
    server.thaw()

    proxy.seconds = 1  # the server has taken a request for a second before `recipe sync` learns it
    process = subprocess.Popen(
        [sys.executable, "-m", "recipe", "sync"], cwd=store, env={**ENVIRONMENT, "MLFLOW_TRACKING_URI": proxy.uri}
    )
    mlflow_tracker = tracker(store)
    mlflow_tracker.server.uri = server.uri
    deadline = time.monotonic() + 120
    while True:
        runs = mlflow_tracker.client.search_runs([mlflow_tracker.experiment_id()], f"tags.fingerprint = '{'f' * 64}'")
        if runs and runs[0].data.metrics:
            break
        assert process.poll() is None and time.monotonic() < deadline
    process.kill()
    process.wait()
    num_sent = len(history(mlflow_tracker, the_run(mlflow_tracker)))
    assert 0 < num_sent < STEPS * VALUES and len(pending(store)) == 1

    proxy.seconds = 0
    output = invoke("sync")
    assert f"{STEPS * VALUES - num_sent} of {STEPS * VALUES} points were missing" in output
    points = history(mlflow_tracker, the_run(mlflow_tracker))
    assert points == sorted(
        [f"train/value {number}", step, step / 10 + number] for number in range(VALUES) for step in range(1, STEPS + 1)
    )
    assert pending(store) == []
    proxy.close()


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from registered import tracker
with tracker(Path()).training() as log:
    for step in (1, 2, 3):
        log({"loss": 4.0 - step}, step)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_training_leaves_complete_lines_and_resumes_in_the_same_run(store, monkeypatch):
    """The training is resumed after step 1, so steps 2 and 3 are computed again."""
    database = store / "mlflow" / "mlflow.db"
    experiment = tracker(store).experiment_id()
    lock = Lock(database)
    command = [sys.executable, "-c", KILLED, str(ROOT), str(ROOT / "tests")]
    assert subprocess.run(command, cwd=store, env=ENVIRONMENT, check=False).returncode == -signal.SIGKILL
    [path] = pending(store)
    with path.open("a") as file:
        file.write('{"time": 1, "step": 4, "metr')  # a write that the kill interrupted
    monkeypatch.setattr(live, "START_SECONDS", 0.1)
    with tracker(store).training() as log:
        lock.release()
        for step in (2, 3, 4):
            log({"loss": 4.0 - step}, step)
    if pending(store):  # MLflow waits up to 20 s between two looks at the lock
        assert pending(store) == [path] and "FINISHED" in path.read_text()
        invoke("sync")
    mlflow_tracker = tracker(store)
    assert mlflow_tracker.experiment_id() == experiment and pending(store) == []
    run = the_run(mlflow_tracker)
    assert history(mlflow_tracker, run) == [["train/loss", step, 4.0 - step] for step in (1, 2, 3, 4)]
    assert run.info.status == "FINISHED"


def test_register_sends_what_is_pending_and_soon_gives_up(tiny_base, store, server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    invoke("new", "quick", "--data", "rows", "--model", str(tiny_base))
    monkeypatch.chdir(store / "presets" / "quick")
    edit(store / "presets" / "quick", "max_generations: 450", "max_generations: 1")
    edit(store / "presets" / "quick", "max_new_tokens: 64", "max_new_tokens: 2")
    for stage in (["fetch", "data"], ["fetch", "model"], ["prepare"], ["analyze"]):
        invoke(*stage)
    server.freeze()
    invoke("train")
    invoke("evaluate")
    [journal] = pending(store)
    header = json.loads(journal.read_text().split("\n")[0])
    started = time.monotonic()
    output = invoke("register", code=6)
    assert time.monotonic() - started < 10 + 3  # reading the outputs, on a slow machine
    assert "no answer within 9 s" in output and f"Start the server at {server.uri}" in output
    assert "The adapter is safe" in output and "`dvc repro`, which continues with the register stage" in output
    assert pending(store) == [journal] and not (store / "presets/quick/models/registered.json").exists()

    server.thaw()
    output = invoke("register")
    assert "were missing" in output and "version 1 is the first champion" in output
    mlflow_tracker = tracker(store, fingerprint=header["fingerprint"])
    mlflow_tracker.experiment = header["experiment"]
    run = the_run(mlflow_tracker)
    curve = [line.split(",") for line in Path("metrics/loss.csv").read_text().split()[1:]]
    losses = {step: value for key, step, value in history(mlflow_tracker, run) if key == "train/loss"}
    assert losses == pytest.approx({int(step): float(loss) for step, loss, *_ in curve}, abs=1e-4)
    assert run.info.status == "FINISHED"
    points = history(mlflow_tracker, run, "")
    assert len({(key, step) for key, step, _ in points}) == len(points)
    assert "version 1 is already the champion" in invoke("register")
    assert history(mlflow_tracker, the_run(mlflow_tracker), "") == points


def test_a_journal_for_another_server_or_with_damage_is_kept_and_named(store, monkeypatch, server):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{free_port()}")
    with tracker(store, fingerprint="c" * 64).training() as log:
        log({"loss": 1.0}, 1)
    [path] = pending(store)
    assert "secret" not in path.read_text()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    output = invoke("sync")
    assert f"{path.name} is for MLflow at http://127.0.0.1:" in output and "remaining trainings: 1" in output
    damaged = path.with_name("damaged.jsonl")
    damaged.write_bytes(path.read_bytes()[100:])
    output = invoke("sync", "--all", code=DataError.exit_code)
    assert "sent tiny-r4: FINISHED" in output and f"{damaged.name} is damaged" in output
    assert pending(store) == [damaged]
