"""docker/compose.yaml for real: MLflow on PostgreSQL, a recipe that logs to it by name, down, up, backup, restore."""

import json
import os
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from base64 import b64encode
from pathlib import Path

import pytest
from conftest import ROOT, alpaca, edit, toy_rows, write_jsonl
from containers import own

pytestmark = pytest.mark.docker
PASSWORD = "a long test password"


class Services:
    """docker/services as a user of Docker calls it, in a project and on a port of its own."""

    def __init__(self, engine, folder):
        self.engine, self.folder = engine, folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def run(self, *arguments, check=True, **more):
        command, environment = self.engine.as_user(
            "docker/services", *arguments, folder=self.folder.parent, PROJECT="recipe-services", PORT=str(self.port),
            COMPOSE="docker-compose", POSTGRES_IMAGE="local/postgres", LOCK="cpu", IMAGE="recipe-test:cpu",
            RECIPE="presets/quick", **more,
        )  # fmt: skip
        done = subprocess.run(
            command, cwd=self.folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stdout[-4000:]
        return done.stdout

    def ask(self, path, method="GET", body=None, **headers):
        """The status and the JSON of a request to the server."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/2.0/mlflow/{path}", method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", **headers},
        )  # fmt: skip
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, {}

    def champion(self):
        status, answer = self.ask("registered-models/alias?name=quick&alias=champion")
        return answer["model_version"]["version"] if status == 200 else None


@pytest.fixture(scope="module")
def services(engine, image, cloned, place):
    if not shutil.which("docker-compose"):
        pytest.skip("docker-compose is not installed: apt-get install docker-compose")
    folder = ROOT / "tests/docker"
    engine.docker(
        "build", "--network", "host", "-f", folder / "postgres.Dockerfile", "--build-arg", f"BASE_IMAGE={engine.base}",
        "-t", "local/postgres", folder,
    )  # fmt: skip
    write_jsonl(cloned / "rows" / "train.jsonl", toy_rows(80))
    write_jsonl(cloned / "rows" / "validation.jsonl", [alpaca(f"Held {n}", "x y") for n in range(6)])
    own(cloned / "rows")
    one = Services(engine, cloned)
    make_quick = ["run", "--rm", "--user", "1000:1000", "--mount", f"type=bind,source={cloned},target=/workspace"]
    engine.docker(*make_quick, "recipe-test:cpu", "recipe", "new", "quick", "--data", "rows")
    quick = cloned / "presets" / "quick"
    edit(quick, "num_prompts: 450", "num_prompts: 2")
    edit(quick, "max_new_tokens: 64", "max_new_tokens: 4")
    own(quick)
    yield one
    one.run("down", check=False)
    engine.docker("volume", "rm", "-f", "recipe-services_postgres", "recipe-services_artifacts", check=False)


def test_a_recipe_logs_to_the_services_and_all_survives_down_up_and_a_restore(services, place):
    out = services.run("up")
    assert f"MLflow: http://127.0.0.1:{services.port}" in out
    assert oct((services.folder / "docker/.env").stat().st_mode & 0o777) == "0o600"

    out = services.run("train")
    assert "MLflow run: http://mlflow:5000/#/experiments/" in out and "is the first champion" in out, out[-3000:]
    assert services.champion() == "1"
    load = "import mlflow; model = mlflow.pyfunc.load_model('models:/quick@champion')\n"
    load += "print('answer', repr(model.predict([{'instruction': 'Say number 3.'}])))"
    assert "answer [" in services.run("train", "python", "-c", load)

    services.run("down")
    services.run("up")
    assert services.champion() == "1"
    assert "answer [" in services.run("train", "python", "-c", load)

    backup = place / "services.backup"
    own(place / "home")
    services.run("backup", str(place / "home" / backup.name))
    assert oct((place / "home" / backup.name).stat().st_mode & 0o777) == "0o600"
    assert "is there already" in services.run("backup", str(place / "home" / backup.name), check=False)
    status, _ = services.ask("registered-models/delete", "DELETE", {"name": "quick"})
    assert status == 200 and services.champion() is None
    assert "restored from" in services.run("restore", str(place / "home" / backup.name))
    assert services.champion() == "1"
    assert "answer [" in services.run("train", "python", "-c", load)
    Path(place / "home" / "nothing").write_text("x")
    assert "is no backup of" in services.run("restore", str(place / "home" / "nothing"), check=False)

    assert services.ask("experiments/search?max_results=1", Host="elsewhere.example")[0] == 403


def test_wider_than_loopback_it_wants_a_password(services):
    """One that is not given stops the server; one that is keeps strangers out."""
    services.run("down")
    out = services.run("up", check=False, BIND="0.0.0.0", START_SECONDS="20")
    assert "needs MLFLOW_AUTH_ADMIN_PASSWORD" in out and "error: MLflow did not start" in out, out[-3000:]
    services.run("up", BIND="0.0.0.0", MLFLOW_AUTH_ADMIN_PASSWORD=PASSWORD)
    assert services.ask("experiments/search?max_results=1")[0] == 401
    basic = "Basic " + b64encode(f"admin:{PASSWORD}".encode()).decode()
    assert services.ask("experiments/search?max_results=1", Authorization=basic)[0] == 200
    out = services.run(
        "train", "recipe", "register", MLFLOW_AUTH_ADMIN_PASSWORD=PASSWORD, MLFLOW_TRACKING_USERNAME="admin",
        MLFLOW_TRACKING_PASSWORD=PASSWORD,
    )  # fmt: skip
    assert "version 1" in out and PASSWORD not in out
    assert os.environ.get("MLFLOW_TRACKING_URI") is None
