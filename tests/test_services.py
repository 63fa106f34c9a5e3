"""Run docker/compose.yaml: MLflow with PostgreSQL, a recipe that logs to it, down, up, backup and restore."""

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from pathlib import Path

import pytest
from conftest import ROOT, alpaca, edit, toy_rows, write_jsonl
from containers import USER, own

pytestmark = pytest.mark.docker
PASSWORD = "a long test password"


class Services:
    """Runs docker/services as a user of Docker, in a separate project and on a free port."""

    def __init__(self, engine, folder):
        self.engine, self.folder = engine, folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def run(self, *arguments, check=True, **variables):
        command, environment = self.engine.as_user(
            "docker/services", *arguments, folder=self.folder.parent, PROJECT="recipe-services", PORT=str(self.port),
            COMPOSE="docker-compose", POSTGRES_IMAGE="local/postgres", LOCK="cpu", IMAGE="recipe-test:cpu",
            RECIPE="presets/quick", **variables,
        )  # fmt: skip
        done = subprocess.run(
            command, cwd=self.folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stdout[-4000:]
        return done.stdout

    def ask(self, path, method="GET", body=None, **headers):
        """Send a request to the server; returns its status and JSON."""
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
    running = Services(engine, cloned)
    in_clone = ["run", "--rm", "--user", f"{USER}:{USER}", "--mount", f"type=bind,source={cloned},target=/workspace"]
    engine.docker(*in_clone, "recipe-test:cpu", "recipe", "new", "quick", "--data", "rows")
    quick = cloned / "presets" / "quick"
    edit(quick, "max_generations: 450", "max_generations: 2")
    edit(quick, "max_new_tokens: 64", "max_new_tokens: 4")
    own(quick)
    yield running
    running.run("down", check=False)
    engine.docker("volume", "rm", "-f", "recipe-services_postgres", "recipe-services_artifacts", check=False)


def test_a_recipe_logs_to_the_services_and_its_version_survives_down_up_and_restore(services, place):
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
    assert "already exists" in services.run("backup", str(place / "home" / backup.name), check=False)
    status, _ = services.ask("registered-models/delete", "DELETE", {"name": "quick"})
    assert status == 200 and services.champion() is None
    assert "restored from" in services.run("restore", str(place / "home" / backup.name))
    assert services.champion() == "1"
    assert "answer [" in services.run("train", "python", "-c", load)
    Path(place / "home" / "nothing").write_text("x")
    assert "is not a backup created by" in services.run("restore", str(place / "home" / "nothing"), check=False)

    assert services.ask("experiments/search?max_results=1", Host="elsewhere.example")[0] == 403


IN_BUCKET = """
import boto3
s3 = boto3.client("s3", "us-east-1", endpoint_url="http://s3:9000", aws_access_key_id="a", aws_secret_access_key="b")
if not s3.list_buckets()["Buckets"]:
    s3.create_bucket(Bucket="runs")
print(*sorted(file["Key"] for file in s3.list_objects_v2(Bucket="runs").get("Contents", [])), sep="\\n")
"""


@pytest.fixture
def bucket(services, engine, place):
    """An in-memory S3 server (moto) in the services' network; returns a function that lists the bucket's keys."""
    services.run("up")  # also creates the network
    package = [sys.executable, "-m", "pip", "install", "-q", "--target", place / "moto", "moto[server]==5.2.5"]
    subprocess.run(package, check=True)
    engine.docker(
        "run", "-d", "--rm", "--name", "recipe-s3", "--network", "recipe-services_outside", "--network-alias", "s3",
        "--mount", f"type=bind,source={place / 'moto'},target=/moto", "--env", "PYTHONPATH=/moto",
        "recipe-test:cpu", "python", "-m", "moto.server", "-H", "0.0.0.0", "-p", "9000",
    )  # fmt: skip
    yield lambda: engine.docker("exec", "recipe-s3", "python", "-c", IN_BUCKET).split()
    engine.docker("rm", "-f", "recipe-s3", check=False)


@pytest.mark.long
def test_artifacts_are_stored_in_a_bucket_and_loaded_from_it(services, bucket, place):
    s3 = {"MLFLOW_ARTIFACTS": "s3://runs/mlflow", "MLFLOW_S3_ENDPOINT_URL": "http://s3:9000"}
    s3 |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    services.run("up", **s3)
    assert bucket() == []
    edit(services.folder / "presets/quick", "name: quick ", "name: in-bucket ")
    assert "is the first champion" in services.run("train", "recipe", "register", **s3)
    keys = bucket()
    assert any(key.endswith("adapter_model.safetensors") for key in keys), keys
    assert all(key.startswith("mlflow/") for key in keys)
    load = "import mlflow; model = mlflow.pyfunc.load_model('models:/in-bucket@champion')\n"
    load += "print('answer', repr(model.predict([{'instruction': 'Say number 3.'}])))"
    assert "answer [" in services.run("train", "python", "-c", load, **s3)
    out = services.run("backup", str(place / "home" / "with-bucket.backup"), **s3)
    assert "note: the artifacts are not stored in a volume on this machine, so this backup does not contain them" in out
    edit(services.folder / "presets/quick", "name: in-bucket ", "name: quick ")
    services.run("up")


def test_beyond_loopback_the_server_requires_a_password(services):
    """Without a password the server does not start; with a password it rejects other requests."""
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
