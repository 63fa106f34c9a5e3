"""Tiny bases of many families go through plan and all stages, are registered, and answer."""

import json
import shutil

import pytest
from click.testing import CliRunner
from conftest import edit, small_repository, write_jsonl
from test_bases import ROWS, WEIGHTS, sentencepiece_file  # noqa: F401 - a fixture
from test_formats import STAGES
from tiny_models import tiny_config, tiny_repository

from recipe.cli.commands import main
from recipe.core.io import read_json, sha256_file

# SmolLM2 is in test_pretrained.py, with its real weights.
FAMILIES = ("Llama", "Qwen3-tied", "Qwen3Moe", "Mixtral", "Gemma3Text", "Mistral", "Phi3", "GPTNeoX", "GPT2", "Olmoe")
FAST, SLOW = {"Llama", "GPT2"}, {"Qwen3Moe", "Gemma3Text"}


def all_stages(folder, base, monkeypatch, changes):
    """Create a recipe for a base, run plan and all stages, and return the recipe's folder."""
    repository = small_repository(folder)
    write_jsonl(repository / "rows.jsonl", ROWS)
    monkeypatch.chdir(repository)
    commands = [f"new tiny --data rows.jsonl --model {base}", *STAGES]
    commands.insert(4, "plan")
    for command in commands:
        result = CliRunner().invoke(main, command.split(), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        if command.startswith("new"):
            recipe = repository / "presets" / "tiny"
            small = {
                "max_generations: 450": "max_generations: 2", "max_new_tokens: 64": "max_new_tokens: 4",
                "learning_rate: 3e-3": "learning_rate: 1e-2", "num_epochs: 1 ": "num_epochs: 3 ",
                "save_steps: 100": "save_steps: 10",
            }  # fmt: skip
            for old, new in {**small, **changes}.items():
                edit(recipe, old, new)
            monkeypatch.chdir(recipe)
    return recipe


def check(recipe, base, before):
    """The adapter is better than the base, and registered; the registered model answers; the base is unchanged."""
    import mlflow

    scores = read_json(recipe / "metrics" / "evaluate.json")
    assert scores["adapter"]["loss"] < scores["base"]["loss"]
    model = mlflow.pyfunc.load_model("models:/tiny@champion")
    assert len(model.predict([{"instruction": ROWS[3]["instruction"]}], {"max_new_tokens": 4})) == 1
    assert {path.name: sha256_file(path) for path in base.iterdir()} == before


def often(name):
    """Some families are tested in `make test`, some in `make test-all`, and the others in `make test-long`."""
    marks = () if name in FAST else pytest.mark.slow if name in SLOW else pytest.mark.long
    return pytest.param(name, marks=marks)


@pytest.mark.parametrize("family", map(often, FAMILIES))
def test_a_family_goes_through_all_stages(family, tmp_path, monkeypatch):
    base = tmp_path / "model"
    base.mkdir()
    tiny_repository(base, tiny_config(family))
    before = {path.name: sha256_file(path) for path in base.iterdir()}
    changes = {"template: alpaca ": "template: alpaca_chat ", "chat_template: null": "chat_template: chatml"}
    if family in {"Qwen3Moe", "Mixtral", "Olmoe"}:
        changes["dropout: 0.05"] = "dropout: 0.0"
    check(all_stages(tmp_path / "repository", base, monkeypatch, changes), base, before)


@pytest.mark.slow
def test_a_base_with_a_sentencepiece_file_goes_through_all_stages(sentencepiece_file, tmp_path, monkeypatch):  # noqa: F811
    """Beside the weights, the base has only tokenizer.model and a short tokenizer_config.json, as Llama 2 has."""
    base = tmp_path / "model"
    base.mkdir()
    tiny_repository(base, tiny_config("Llama"))
    for path in base.iterdir():
        if path.name not in WEIGHTS:
            path.unlink()
    shutil.copy(sentencepiece_file, base / "tokenizer.model")
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    before = {path.name: sha256_file(path) for path in base.iterdir()}
    check(all_stages(tmp_path / "repository", base, monkeypatch, {}), base, before)
