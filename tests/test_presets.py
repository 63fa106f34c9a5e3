"""Run the shipped presets against a fake Hub on loopback with tiny repositories of the same structure."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, edit
from hub_server import FakeHub
from tiny_models import tiny_config, tiny_repository

from recipe.cli.context import sections
from recipe.cli.new import HUB_FILE, pipeline_of
from recipe.core.config import read_params
from recipe.fetch.xgen_tokenizer import GPT2, GPT2_REVISION

PRESETS = sorted(path.parent for path in ROOT.glob("presets/*/params.yaml"))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.name)
def test_a_preset_starts_with_its_command_and_has_the_root_pipeline(preset):
    params = read_params(preset / "params.yaml", sections())
    assert params["registry"].name == preset.name
    head = (preset / "params.yaml").read_text().partition("\ndata:")[0]
    assert "dvc repro" in head and "GPU" in head and "Time: " in head
    assert not any(path.is_symlink() for path in preset.iterdir())
    # After a change of the root's dvc.yaml, run: make presets
    assert (preset / "dvc.yaml").read_text() == pipeline_of(ROOT)
    assert (preset / "hub").read_text() == HUB_FILE


def test_the_xgen_preset_has_the_tutorials_settings():
    params = read_params(ROOT / "presets/xgen-7b-alpaca/params.yaml", sections())
    assert (params["model"].id, params["data"].id) == ("Salesforce/xgen-7b-8k-base", "tatsu-lab/alpaca")
    assert params["model"].revision is None and params["data"].revision is None  # `recipe pin` writes them
    lora, train = params["lora"], params["train"]
    assert (lora.r, lora.alpha, lora.dropout, lora.target_modules) == (16, 32, 0.05, "all-linear")
    assert (train.learning_rate, train.lr_schedule, train.warmup_ratio) == (2e-4, "linear", 0.1)
    assert (train.num_epochs, train.global_batch_size, params["sequence"].max_length) == (1, 4, 1024)
    assert train.quantization == "nf4"


@pytest.fixture
def repository(tmp_path):
    """A new repository with the files of this one, without outputs."""
    folder = tmp_path / "repository"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists() and name != "dvc.lock" and not name.startswith("metrics/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    return folder


def xgen_files(tmp_path):
    """XGen's structure with tiny sizes: config, .bin shards with an index, a tokenizer that declares remote code."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=51200, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=8192, rms_norm_eps=1e-6, bos_token_id=50256, eos_token_id=50256, pad_token_id=0,
    )  # fmt: skip
    config.architectures = ["LlamaForCausalLM"]
    torch.manual_seed(0)
    state = LlamaForCausalLM(config).state_dict()
    names, files, weight_map = sorted(state), {}, {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        shard, data = f"pytorch_model-{number:05d}-of-00002.bin", io.BytesIO()
        torch.save({name: state[name] for name in part}, data)
        files[shard] = data.getvalue()
        weight_map |= dict.fromkeys(part, shard)
    config.save_pretrained(tmp_path / "config")
    remote = {"AutoTokenizer": ["tokenization_xgen.XgenTokenizer", None]}
    return files | {
        "README.md": b"---\nlicense: apache-2.0\n---\n# XGen\n",
        "config.json": (tmp_path / "config" / "config.json").read_bytes(),
        "pytorch_model.bin.index.json": json.dumps({"metadata": {}, "weight_map": weight_map}).encode(),
        "tokenizer_config.json": json.dumps({"tokenizer_class": "XgenTokenizer", "auto_map": remote}).encode(),
        "tokenization_xgen.py": b"raise SystemExit('remote code was run')\n",
    }


def alpaca_parquet(shared, count):
    """Alpaca's structure: Parquet with instruction, input, output and text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = json.loads((shared / "alpaca_en_999.json").read_text(encoding="utf-8"))[:count]
    rows = [{name: row[name] for name in ("instruction", "input", "output")} | {"text": "x"} for row in rows]
    rows.append({"instruction": "Say nothing.", "input": "", "output": "", "text": "x"})  # Alpaca has 28 such rows
    data = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), data)
    return data.getvalue()


class Session:
    """Runs commands in a preset's folder against a Hub on loopback."""

    def __init__(self, folder: Path, hub: FakeHub):
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {**hub.environment(folder.parent / "hf"), "PATH": path}
        self.folder = folder

    def run(self, *command, code=0):
        done = subprocess.run(
            list(command), cwd=self.folder, env=self.environment, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        assert code is None or done.returncode == code, done.stdout[-4000:]
        assert "Traceback" not in done.stdout, done.stdout[-4000:]
        return done.stdout

    def edit(self, *changes):
        for old, new in changes:
            edit(self.folder, old, new)


@pytest.mark.long
def test_the_xgen_preset_runs_completely(repository, shared, tmp_path):
    """presets/xgen-7b-alpaca with small sizes, no quantization and a fake Hub: unpinned, pinned, run, cache removed."""
    with FakeHub() as hub:
        hub.add("model", "Salesforce/xgen-7b-8k-base", xgen_files(tmp_path))
        card = b"---\nlicense: cc-by-nc-4.0\n---\n# Alpaca\n"
        rows = {"README.md": card, "data/train-00000-of-00001-a09b74b3ef9c3b56.parquet": alpaca_parquet(shared, 150)}
        hub.add("dataset", "tatsu-lab/alpaca", rows)
        gpt2 = {"vocab.json": "encoder.json", "merges.txt": "vocab.bpe"}
        files = {name: (shared / "gpt2" / source).read_bytes() for name, source in gpt2.items()}
        hub.add("model", GPT2, files, commit=GPT2_REVISION)
        here = Session(repository / "presets" / "xgen-7b-alpaca", hub)

        assert "`recipe pin`" in here.run("dvc", "repro", code=None)
        assert here.run("recipe", "pin").count("+  revision: ") == 2
        here.edit(
            ("max_generations: 100", "max_generations: 4"), ("max_new_tokens: 256", "max_new_tokens: 8"),
            ("validation_fraction: 0.02", "validation_fraction: 0.1"), ("save_steps: 100", "save_steps: 10"),
            ("quantization: nf4", "quantization: none"), ("learning_rate: 2e-4", "learning_rate: 2e-2"),
        )  # fmt: skip
        out = here.run("dvc", "repro")
        assert "converting pytorch_model-00001-of-00002.bin to model-00001-of-00002.safetensors" in out
        scores = json.loads((here.folder / "metrics/evaluate.json").read_text())
        assert scores["adapter"]["loss"] < scores["base"]["loss"]
        meta = json.loads((here.folder / "data/prepared/meta.json").read_text())
        assert (meta["eos_token_id"], meta["pad_token_id"], meta["rows"]["quarantined"]) == (50256, 50298, 1)
        base = json.loads((here.folder / "models/base/manifest.json").read_text())
        assert base["converted"] and base["license"] == "apache-2.0"
        assert not list(here.folder.rglob("*.bin"))
        assert not hub.gets("tokenization_xgen.py")

        lock, num_requests = (here.folder / "dvc.lock").read_bytes(), len(hub.requests)
        shutil.rmtree(here.folder.parent / "hf")
        (here.folder / "models/adapter/adapter_model.safetensors").unlink()
        out = here.run("recipe", "train", code=4)
        assert "Run `recipe fetch model` to restore the file (no outputs will change)" in out
        assert len(hub.requests) == num_requests
        here.run("recipe", "fetch", "model")
        here.run("dvc", "repro")
        assert (here.folder / "dvc.lock").read_bytes() == lock


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def chats(start, count):
    return [
        {"messages": [
            {"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello there"},
            {"role": "user", "content": f"how are you {n} ?"}, {"role": "assistant", "content": f"it is {n}"},
        ]}
        for n in range(start, start + count)
    ]  # fmt: skip


SUMS = [{"question": f"what is the sum of {n} and 40 ?", "answer": f"it is {n + 40} ."} for n in range(60)]
SHAPES = {
    "qwen3-8b-alpaca": ("Qwen3", None, {"data/train-00000-of-00001.parquet": None}),
    "smollm2-gsm8k": (
        "Llama", CHATML,
        {"README.md": b"---\nconfigs:\n- config_name: main\n  data_files:\n  - {split: train, path: main/train.jsonl}\n"
                      b"  - {split: test, path: main/test.jsonl}\n---\n",
         "main/train.jsonl": lines(SUMS[:50]), "main/test.jsonl": lines(SUMS[50:])},
    ),
    "qwen3-chat": (
        "Qwen3", None,
        {"README.md": b"---\nconfigs:\n- config_name: default\n  data_files:\n"
                      b"  - {split: train_sft, path: data/train_sft.jsonl}\n"
                      b"  - {split: test_sft, path: data/test_sft.jsonl}\n---\n",
         "data/train_sft.jsonl": lines(chats(0, 50)), "data/test_sft.jsonl": lines(chats(50, 10))},
    ),
}  # fmt: skip


# One of them is in CI; the others take a minute and a half each.
IN_CI = "qwen3-chat"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name == IN_CI else pytest.param(name, marks=pytest.mark.long) for name in SHAPES]
)
def test_a_preset_runs_completely_on_repositories_of_its_structure(repository, shared, tmp_path, name):
    family, template, files = SHAPES[name]
    files = {path: data or alpaca_parquet(shared, 100) for path, data in files.items()}
    here = repository / "presets" / name
    params = read_params(here / "params.yaml", sections())
    with FakeHub() as hub:
        (tmp_path / "model").mkdir()
        hub.add("model", params["model"].id, tiny_repository(tmp_path / "model", tiny_config(family), template))
        hub.add("dataset", params["data"].id, files)
        session = Session(here, hub)
        session.run("recipe", "pin")
        session.edit(
            ("max_generations: 100", "max_generations: 4"), ("max_new_tokens: 256", "max_new_tokens: 8"),
            (f"quantization: {params['train'].quantization}", "quantization: none"),
            ("learning_rate: 2e-4", "learning_rate: 1e-2"), ("num_epochs: 1 ", "num_epochs: 3 "),
        )  # fmt: skip
        session.run("dvc", "repro")
        scores = json.loads((here / "metrics/evaluate.json").read_text())
        assert scores["adapter"]["loss"] < scores["base"]["loss"]
