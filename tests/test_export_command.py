"""`recipe export`: what the user gets, what MLflow gets, and what is refused."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import enter_copy, invoke, small_recipe
from mlflow import MlflowClient

from recipe.core.io import sha256_file

RUNS = ("fetch data", "fetch model", "prepare", "analyze", "train", "evaluate", "register")


@pytest.fixture(scope="module")
def complete(tiny_base, tmp_path_factory):
    """A repository whose recipe `quick` has run completely and learned its rows."""
    changes = {
        "max_generations: 450": "max_generations: 3", "max_new_tokens: 64": "max_new_tokens: 2",
        "num_epochs: 1 ": "num_epochs: 8 ", "global_batch_size: 4": "global_batch_size: 1",
    }  # fmt: skip
    return small_recipe(tmp_path_factory.mktemp("export") / "repository", tiny_base, invoke, changes, RUNS)


@pytest.fixture
def folder(complete, tmp_path, monkeypatch):
    return enter_copy(complete, tmp_path, monkeypatch)


@pytest.mark.slow
def test_the_adapter_here_and_the_registered_version_give_the_same_model(folder):
    result = invoke("export --to merged")
    assert result.exit_code == 0, result.output
    assert "equal prompts: 3 of 3" in result.output and "exported model: exports/merged-float32 (" in result.output
    record = json.loads((folder / "reports" / "export" / "merged-float32.json").read_text())
    assert record["parities"]["original"]["equal_answers"] == 3 and record["kept"] == "original"
    assert record["limits"] == "logits within 0.001, 100% equal answers"
    assert "1 export is the trained model" in (folder / "reports" / "export" / "index.html").read_text()
    client = MlflowClient(f"sqlite:///{folder.resolve().parents[1] / 'mlflow' / 'mlflow.db'}")
    run_id = client.get_model_version_by_alias("quick", "champion").run_id
    assert {item.path for item in client.list_artifacts(run_id, "export")} == {
        "export/index.html",
        "export/merged-float32.json",
    }

    result = invoke("export models:/quick@champion --to merged --out again")
    assert result.exit_code == 0, result.output
    files = {path.name: path.read_bytes() for path in (folder / "exports" / "merged-float32").iterdir()}
    assert {path.name: path.read_bytes() for path in (folder / "again").iterdir()} == files
    assert not list((folder / ".recipe").glob("tmp*"))

    half = invoke("export --to merged --dtype bfloat16 --tolerance 0.5")
    assert half.exit_code == 0, half.output
    assert json.loads((folder / "exports" / "merged-bfloat16" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.slow
def test_ollama_gets_a_gguf_file_of_the_registered_version_and_a_modelfile(folder, llama):
    (folder.parents[1] / ".recipe").mkdir(exist_ok=True)
    (folder.parents[1] / ".recipe" / llama.name).symlink_to(llama)
    result = invoke("export models:/quick@champion --to ollama --tolerance 0.05")
    assert result.exit_code == 0, result.output
    assert "equal prompts: 3 of 3" in result.output
    assert "next: ollama create quick -f exports/ollama-q8_0/Modelfile && ollama run quick" in result.output
    assert {path.name for path in (folder / "exports" / "ollama-q8_0").iterdir()} == {
        "quick-q8_0.gguf", "Modelfile", "export.json",
    }  # fmt: skip
    assert "ollama" in (folder / "reports" / "export" / "index.html").read_text()


def test_an_adapter_that_answers_like_its_base_is_refused_and_nothing_is_kept(folder):
    from safetensors.torch import load_file, save_file

    path = folder / "models" / "adapter" / "adapter_model.safetensors"
    weights = load_file(path)
    save_file({name: weight * 1e-9 if "lora_B" in name else weight for name, weight in weights.items()}, path)
    result = invoke("export --to merged")
    assert result.exit_code == 5 and "not clearly nearer to the adapter" in result.output, result.output
    assert not (folder / "exports" / "merged-float32").exists() and not (folder / "reports" / "export").exists()


def test_what_can_not_be_exported_is_refused_with_the_reason(folder):
    def refused(code, message, command="export --to merged"):
        result = invoke(command)
        assert result.exit_code == code and message in result.output, result.output

    (folder / "mine").mkdir()
    for name in ("thesis.tex", "config.json"):  # also another model's folder
        (folder / "mine" / name).write_text("x")
        refused(2, "mine is not an export, but an export would replace it", "export --to merged --out mine")
    refused(2, "merged can have the precisions float32, bfloat16, not q8_0.", "export --to merged --dtype q8_0")
    refused(2, "--to bundle: name a registered version", "export --to bundle")
    refused(2, "is not a registered version", "export models:/quick --to merged")
    refused(6, "has no models:/quick/7", "export models:/quick/7 --to merged")
    shutil.rmtree(folder / "models" / "adapter")
    refused(4, "contains no adapter. Run `dvc repro`")
    assert (folder / "mine" / "thesis.tex").read_text() == "x"


@pytest.mark.slow
def test_a_bundle_answers_without_network_and_finds_each_changed_file(folder):
    result = invoke("export models:/quick@champion --to bundle")
    assert result.exit_code == 0, result.output
    tar = folder / "exports" / "bundle" / "quick.tar"
    assert "exported: exports/bundle/quick.tar" in result.output and sha256_file(tar) in result.output
    before = tar.read_bytes()
    assert invoke("export models:/quick@champion --to bundle").exit_code == 0
    assert tar.read_bytes() == before

    shutil.unpack_archive(tar, folder / "elsewhere")
    bundle = folder / "elsewhere" / "quick"

    def answer(*prompt):
        """Answer in a network namespace of its own, in which there is no network."""
        command = [sys.executable, "-P", str(bundle / "answer.py"), *prompt]
        environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
        return subprocess.run(["unshare", "--net", "--map-root-user", *command], env=environment, text=True, cwd="/",
                              capture_output=True, check=False)  # fmt: skip

    done = answer()
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == json.loads((bundle / "check.json").read_text())["answer"]
    assert answer("Say number 3 and nothing else.").stdout.strip()
    assert {"MODEL_CARD.md", "requirements.lock", "provenance"} <= {path.name for path in bundle.iterdir()}
    adapter = bundle / "adapter" / "adapter_model.safetensors"
    original = adapter.read_bytes()
    adapter.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    assert "adapter/adapter_model.safetensors differs from the file that was exported" in answer().stderr
    adapter.unlink()
    assert "adapter/adapter_model.safetensors is missing" in answer().stderr
    adapter.write_bytes(original)
    (bundle / "recipe" / "planted.py").write_text("")
    assert "recipe/planted.py is not part of the bundle" in answer().stderr
