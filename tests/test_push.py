"""`recipe push`: what is shown, what is refused, and what a loopback Hub receives, also after an interruption."""

import os
import subprocess

import pytest
from conftest import edit, enter_copy, invoke, small_repository
from hub_server import FakeHub
from mlflow import MlflowClient
from peft import PeftConfig
from ruamel.yaml import YAML
from runs import run
from safetensors import safe_open

from recipe.publish.card import hub_card
from recipe.publish.checks import license_problem, secrets_in

RUNS = ("fetch data", "fetch model", "prepare", "analyze", "train", "evaluate", "register")
IGNORED = "data/\nmodels/\nreports/\nmetrics/\nmlflow/\n.recipe/\nexports/\nhome/\n"


@pytest.mark.parametrize(
    ("name", "allowed"),
    [("apache-2.0", True), ("mit", True), ("cc-by-4.0", True), ("cc-by-nc-sa-4.0", True), ("llama3.1", True),
     ("gemma", True), ("cc-by-nd-4.0", False), ("cc-by-nc-nd-4.0", False), ("other", False), (None, False)],
)  # fmt: skip
def test_a_license_allows_publishing_or_is_named(name, allowed):
    problem = license_problem(name, "the base model x")
    assert (problem is None) == allowed
    assert allowed or "the license of the base model x" in problem


def test_secrets_are_found_in_texts_and_in_weights(tmp_path):
    token = "hf_" + "A" * 34
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.json").write_text(f'{{"token": "{token}"}}')
    (tmp_path / "b.safetensors").write_bytes(b"\0" * (1 << 20) + b"my-own-password" + b"\0" * 100)
    (tmp_path / "c.safetensors").write_bytes(token.encode())  # bytes of weights that look like a key are none
    (tmp_path / "d.txt").write_text("short and a path /tmp")
    environment = {"MY_PASSWORD": "my-own-password", "API_KEY": "short", "HOME": "/tmp"}
    assert list(secrets_in(tmp_path, environment)) == [
        "b.safetensors contains the value of MY_PASSWORD", "sub/a.json contains what looks like a key or token",
    ]  # fmt: skip


def test_a_card_has_the_header_of_the_hub():
    manifest = {"id": "a/b", "revision": "0" * 40, "license": "mit"}
    header, _, text = hub_card("# Title\n", manifest, "c/d", "adapter").removeprefix("---\n").partition("---\n\n")
    assert text == "# Title\n"
    assert YAML(typ="safe").load(header) == {
        "library_name": "peft", "license": "mit", "base_model": "a/b", "base_model_relation": "adapter",
        "datasets": ["c/d"], "pipeline_tag": "text-generation", "tags": ["lora", "reproducible"],
    }  # fmt: skip
    local = hub_card("# Title\n", {**manifest, "revision": None}, None, "merged")
    assert "base_model" not in local and "datasets" not in local and "library_name: transformers" in local


@pytest.fixture(scope="module")
def complete(tiny_base, tmp_path_factory):
    """A committed repository whose recipe `quick` has run completely."""
    repository, before = tmp_path_factory.mktemp("push") / "repository", dict(os.environ)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(small_repository(repository))
        assert not invoke(f"new quick --data rows --model {tiny_base}").exit_code
        folder = repository / "presets" / "quick"
        edit(folder, "max_generations: 450", "max_generations: 3")
        edit(folder, "max_new_tokens: 64", "max_new_tokens: 2")
        (repository / ".gitignore").write_text(IGNORED)
        run(repository, "git", "init", "-q")
        run(repository, "dvc", "init", "-q")
        patch.chdir(folder)
        for command in RUNS[:-1]:
            result = invoke(command)
            assert not result.exit_code, result.output
        run(folder, "dvc", "commit", "-f", *(command.replace(" ", "@") for command in RUNS[:-1]))
        run(repository, "git", "add", "-A")
        run(repository, "git", "commit", "-q", "-m", "All")
        assert not invoke("register").exit_code
    os.environ.clear()
    os.environ.update(before)
    return repository


@pytest.fixture
def folder(complete, tmp_path, monkeypatch):
    return enter_copy(complete, tmp_path, monkeypatch)


def push(hub, *options, token="hf_write", **variables):
    environment = {**hub.environment("home"), "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1", **variables}
    command = ["python", "-m", "recipe", "push", *options]
    return subprocess.run(command, env=environment, text=True, capture_output=True, check=False)


@pytest.mark.slow
def test_a_version_is_shown_then_published_and_an_interrupted_upload_is_continued(folder):
    with FakeHub() as hub:
        done = push(hub, "me/mine")
        assert done.returncode == 2 and "the license of the base model" in done.stderr, done.stderr
        assert "is not stated" in done.stderr and "--license-confirmed" in done.stderr
        done = push(hub, "me/mine", "--license-confirmed")
        assert done.returncode == 0 and not hub.requests, done.stderr
        for text in (
            "adapter_model.safetensors",
            "provenance/statement.json",
            "library_name: peft",
            "## How to rebuild",
        ):
            assert text in done.stdout
        assert "nothing was published. Add --publish" in done.stdout

        publish = ("me/mine", "models:/quick/1", "--license-confirmed", "--publish", "--private")
        done = push(hub, *publish, token="hf_read")
        assert done.returncode == 4 and "Set HF_TOKEN to a token with write access" in done.stderr, done.stderr
        hub.fail("/lfs/", "cut", times=100)
        done = push(hub, *publish)
        assert done.returncode == 4 and "Run the command again to continue" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr and not hub.repositories["model", "me/mine"].files
        hub.faults.clear()
        hub.add("model", "me/public", {})
        done = push(hub, "me/public", *publish[1:])
        assert done.returncode == 2 and "me/public exists and is public" in done.stderr, done.stderr
        assert not hub.repositories["model", "me/public"].files
        done = push(hub, *publish)
        assert done.returncode == 0 and f"published: {hub.endpoint}/me/mine/commit/" in done.stdout, done.stderr
        sent = dict(hub.sent)
        assert push(hub, *publish).returncode == 0 and dict(hub.sent) == sent  # large files are sent once
        files = hub.repositories["model", "me/mine"].files
        assert hub.private["me/mine"]
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            assert files[name] == (folder / "models" / "adapter" / name).read_bytes()
        for name, data in files.items():
            assert b"hf_write" not in data, name
        (folder / "published").mkdir()
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            (folder / "published" / name).write_bytes(files[name])
        assert PeftConfig.from_pretrained(folder / "published").r
        with safe_open(folder / "published" / "adapter_model.safetensors", "pt") as weights:
            assert list(weights.keys())


@pytest.mark.slow
def test_what_can_not_be_published_is_refused(folder):
    with FakeHub() as hub:
        done = push(hub, "no-owner")
        assert done.returncode == 2 and "Write OWNER/NAME" in done.stderr
        options = ("me/mine", "--license-confirmed", "--publish")
        done = push(hub, *options, API_TOKEN="global_batch_size")
        assert done.returncode == 3, done.stderr
        assert "provenance/params.yaml contains the value of API_TOKEN. Nothing was published" in done.stderr
        store = f"sqlite:///{folder.resolve().parents[1] / 'mlflow' / 'mlflow.db'}"
        client = MlflowClient(store, store)
        client.set_model_version_tag("quick", "1", "git_clean", "no")
        done = push(hub, *options)
        assert done.returncode == 2 and "with changes that are not committed" in done.stderr, done.stderr
        assert not hub.requests
