"""MLflow without pickle and on loopback, and images without secrets, in every way that this project starts them."""

import os
import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT
from containers import SECRET
from ruamel.yaml import YAML

from recipe.tracking.settings import prepare_environment

SETTING = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"
COMPOSE = YAML(typ="safe").load((ROOT / "docker/compose.yaml").read_text())["services"]
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text().replace("\\\n", " ")


def test_the_services_are_published_on_loopback_only():
    ports = [port for service in COMPOSE.values() for port in service.get("ports", [])]
    assert ports == ["${BIND:-127.0.0.1}:${PORT:-5000}:5000", "${SERVE_BIND:-127.0.0.1}:${SERVE_PORT:-8000}:8000"]
    assert not [name for name, service in COMPOSE.items() if service.get("network_mode")]


def test_every_mlflow_server_that_is_not_in_a_container_listens_on_loopback():
    commands = [
        (path.relative_to(ROOT).as_posix(), line.strip())
        for path in [ROOT / "Makefile", *ROOT.glob("docker/*"), *ROOT.glob("docs/*.md"), ROOT / "README.md"]
        if path.is_file()
        for line in path.read_text().replace("\\\n", " ").splitlines()
        if re.match(r"\s*(\$ )?(exec )?mlflow (server|ui)\b", line)
    ]
    assert [file for file, _ in commands] == ["Makefile", "docker/mlflow-server"]
    assert "--host 127.0.0.1" in commands[0][1]


def test_mlflow_unpickles_nothing_wherever_it_is_started(monkeypatch):
    assert f"export {SETTING} := false\n" in (ROOT / "Makefile").read_text()
    stages = re.split(r"^FROM .* AS (\w[\w-]*)$", DOCKERFILE, flags=re.MULTILINE)[1:]
    images = dict(zip(stages[::2], stages[1::2], strict=True))
    assert {name for name, text in images.items() if f"{SETTING}=false" in text} == {"recipe", "mlflow"}
    assert not [service for service in COMPOSE.values() if SETTING in service.get("environment", {})]
    monkeypatch.setenv(SETTING, "true")  # the stages ignore what another program has set
    prepare_environment()
    assert os.environ[SETTING] == "false"


def test_a_pickled_model_in_the_registry_is_refused_unopened(tmp_path, monkeypatch):
    import mlflow
    from mlflow.exceptions import MlflowException

    marker = tmp_path / "unpickled"

    class Planted(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input):
            return model_input

        def __reduce__(self):
            return Path.touch, (marker,)

    monkeypatch.setenv(SETTING, "true")
    mlflow.pyfunc.save_model(str(tmp_path / "model"), python_model=Planted(), pip_requirements=[])
    with pytest.raises(AttributeError):  # what was unpickled is not a model
        mlflow.pyfunc.load_model(str(tmp_path / "model"))
    marker.unlink()  # raises an error if the file was not created
    prepare_environment()
    with pytest.raises(MlflowException, match=SETTING):
        mlflow.pyfunc.load_model(str(tmp_path / "model"))
    assert not marker.exists()


def test_the_dockerfile_takes_no_secret_as_an_argument_or_a_variable():
    arguments = set(re.findall(r"^ARG (\w+)", DOCKERFILE, flags=re.MULTILINE))
    assert arguments == {"BASE_IMAGE", "LOCK", "PYTORCH_INDEX", "COMMIT", "VERSION", "LOCK_SHA256"}
    variables = {
        word.partition("=")[0]
        for line in re.findall(r"^ENV (.+)$", DOCKERFILE, flags=re.MULTILINE)
        for word in shlex.split(line)
    }
    assert "PATH" in variables
    assert not [name for name in variables | arguments if re.search(r"TOKEN|PASSWORD|SECRET|KEY", name)]
    copied = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, flags=re.MULTILINE)
    assert len(copied) == 6 and not [line for line in copied if ".env" in line]


PLANTED = (
    ".env", ".netrc", ".git/config", ".dvc/config.local", "docker/.env", "docker/key.pem", "demo/.env",
    "recipe/.env.local", "requirements/.netrc", "presets/mine/.env", "presets/mine/.dvc/config.local",
    "mlflow/mlflow.db",    "presets/mine/.git-credentials", "presets/mine/hf.key",
)  # fmt: skip


@pytest.mark.docker
def test_the_build_context_contains_no_file_with_a_secret(engine, place):
    """The files that a build can copy, with the engine's own reading of .dockerignore."""
    context, copied = place / "context", place / "copied"
    for name in (*PLANTED, "recipe/kept.py", "presets/mine/params.yaml"):
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        (context / name).write_text(SECRET)
    (context / ".dockerignore").write_text((ROOT / ".dockerignore").read_text())
    (place / "context.Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    engine.docker("build", "-q", "-t", "recipe-context", "-f", place / "context.Dockerfile", context)
    container = engine.docker("create", "recipe-context", "none").strip()
    engine.docker("cp", f"{container}:/", copied)
    engine.docker("rm", container)
    engine.docker("rmi", "recipe-context")
    with_secret = {path.relative_to(copied).as_posix() for path in copied.rglob("*") if is_planted(path)}
    assert with_secret == {"recipe/kept.py", "presets/mine/params.yaml"}


def is_planted(path: Path) -> bool:
    return path.is_file() and path.read_text() == SECRET
