"""Planted tokens and passwords are searched for in everything that the project writes and prints."""

import base64
import subprocess

import pytest
from conftest import RECIPE, edit, small_repository, toy_rows, write_jsonl
from registered import tracker
from runs import ENVIRONMENT, mlflow_server, run

from recipe.core.errors import TrackingError
from recipe.core.format import first_line
from recipe.tracking.settings import check_uri

SECRETS = {
    "HF_TOKEN": "hf_plantedTokenOfTheHub", "WANDB_API_KEY": "plantedKeyOfAnotherTool",
    "MLFLOW_TRACKING_PASSWORD": "plantedPasswordOfMLflow", "MLFLOW_TRACKING_TOKEN": "plantedTokenOfMLflow",
    "AWS_SECRET_ACCESS_KEY": "plantedKeyOfTheBucket", "OPENAI_API_KEY": "sk-plantedKeyOfAnApi",
}  # fmt: skip
IN_URIS = "plantedPasswordInAnAddress"
IN_THE_REMOTE = "plantedTokenOfTheGitRemote"
ALL_SECRETS = [
    secret.encode()
    for value in (*SECRETS.values(), IN_URIS, IN_THE_REMOTE)
    for secret in (value, base64.b64encode(f"user:{value}".encode()).decode())
]


def files_with_secrets(folder):
    """The files below a folder that contain a planted secret, except for git's settings and this file."""
    planted = ((".git", "config"), ("tests", "test_secrets.py"))
    files = [path for path in folder.rglob("*") if path.is_file() and path.parts[-2:] not in planted]
    assert files
    return {
        (path.relative_to(folder).as_posix(), secret)
        for path in files
        for secret in ALL_SECRETS
        if secret in path.read_bytes()
    }


@pytest.mark.slow
def test_no_secret_is_written_or_printed_by_the_pipeline(commit, tmp_path):
    """The whole pipeline with `dvc repro`, an MLflow server, a git remote, and secrets in all places that have them."""
    folder, server, home = tmp_path / "recipe", tmp_path / "server", tmp_path / "home"
    run(tmp_path, "git", "clone", "-q", commit, folder)
    run(folder, "git", "remote", "set-url", "origin", f"https://user:{IN_THE_REMOTE}@example.invalid/recipe.git")
    rows = [row | {"category": "toy"} for row in toy_rows(27)]
    write_jsonl(folder / "rows/train.jsonl", rows[:24])
    write_jsonl(folder / "rows/validation.jsonl", rows[24:])
    edit(folder, "source: demo/rows", "source: rows")
    edit(folder, "max_generations: 450", "max_generations: 1")
    edit(folder, "max_new_tokens: 64", "max_new_tokens: 2")
    server.mkdir()
    home.mkdir()
    with mlflow_server(server / "server.db", server / "artifacts") as address:
        environment = {
            **ENVIRONMENT, **SECRETS, "HOME": str(home), "HF_HOME": str(home / "hf"),
            "MLFLOW_TRACKING_USERNAME": "user", "MLFLOW_TRACKING_URI": address.replace("//", f"//user:{IN_URIS}@"),
        }  # fmt: skip

        def output_of(*command):
            done = subprocess.run(
                command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout[-5000:]
            return done.stdout

        output = output_of("dvc", "repro", "-v") + output_of("recipe", "summary") + output_of("recipe", "link")
    output += run(folder, "git", "diff")
    assert "MLflow run: http://127.0.0.1" in output and "version 1 is the first champion" in output
    assert {secret for secret in ALL_SECRETS if secret in output.encode()} == set()
    for name in ("dvc.lock", "environment.json", "metrics/evaluate.json", "reports/evaluation/index.html"):
        assert (folder / name).is_file()
    assert b"adapter_sha256" in (server / "server.db").read_bytes() and list(server.rglob("MLmodel"))
    assert files_with_secrets(tmp_path) == set()
    assert [path.name for path in server.rglob("*") if path.suffix in (".pkl", ".pickle", ".bin", ".pt", ".pth")] == []


def test_a_run_on_a_server_does_not_print_the_password_of_its_address(store, server, monkeypatch, capfd):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.replace("//", f"//user:{IN_URIS}@"))
    with tracker(store).training() as log:
        log({"loss": 1.0}, 1)
    output = "".join(capfd.readouterr())
    assert f"MLflow run: {server}/#/experiments/" in output and IN_URIS not in output


def test_a_planted_secret_is_found(tmp_path):
    (tmp_path / "database").write_bytes(b"\0" + IN_URIS.encode())
    assert files_with_secrets(tmp_path) == {("database", IN_URIS.encode())}


@pytest.mark.parametrize("command", ["fetch model", "pin", "plan"])
def test_a_failed_request_does_not_show_the_credentials_of_the_hubs_address(tmp_path, monkeypatch, command):
    folder = small_repository(tmp_path / "repository")
    edit(folder, "source: demo/base ", "source: hub ")
    edit(folder, "id: demo-base ", "id: owner/tiny ")
    before, _, after = (folder / "params.yaml").read_text().rpartition("revision: null")
    (folder / "params.yaml").write_text(f"{before}revision: {'main' if command == 'pin' else 'a' * 40}{after}")
    endpoint = f"http://user:{IN_URIS}@127.0.0.1:9"
    done = subprocess.run(
        [*RECIPE, *command.split()], cwd=folder, text=True, capture_output=True, check=False,
        env={**ENVIRONMENT, **SECRETS, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf")},
    )  # fmt: skip
    output = done.stdout + done.stderr
    assert done.returncode == 4 and "http://127.0.0.1:9 is unreachable" in output, output
    assert not [secret for secret in ALL_SECRETS if secret in output.encode()] and "Traceback" not in output


@pytest.mark.parametrize("text", [
    f"http://user:{IN_URIS}@host/path", f"http://user:with@{IN_URIS}@host", f"postgresql://{IN_URIS}@host",
    f"Max retries: {'x' * 155} http://user:{IN_URIS}@host",
])  # fmt: skip
def test_credentials_are_removed_before_a_message_is_cut_off(text):
    shown = first_line(ValueError(text))
    assert "planted" not in shown and len(shown) <= 200


def test_an_address_without_a_scheme_is_shown_without_its_password():
    with pytest.raises(TrackingError, match="MLFLOW_TRACKING_URI=host:5000 names a folder") as raised:
        check_uri(f"user:{IN_URIS}@host:5000")
    assert "planted" not in str(raised.value)
