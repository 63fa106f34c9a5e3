"""The shipped presets, run whole on a Hub on loopback that has repositories in their shape with tiny sizes."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from hub_server import FakeHub

from recipe.cli import _sections
from recipe.params import read_params
from recipe.xgen import GPT2, GPT2_REVISION

PRESETS = sorted(path.parent for path in ROOT.glob("presets/*/params.yaml"))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.name)
def test_a_preset_opens_with_its_command_and_has_the_links(preset):
    params = read_params(preset / "params.yaml", _sections())
    assert params["registry"].name == preset.name
    head = (preset / "params.yaml").read_text().partition("\ndata:")[0]
    assert "dvc repro" in head and "GPU" in head and "Time: " in head
    for link in ("dvc.yaml", "recipe", "hub"):
        assert (preset / link).resolve() == ROOT / link


def test_the_real_recipe_is_the_tutorials():
    params = read_params(ROOT / "presets/xgen-7b-alpaca/params.yaml", _sections())
    assert (params["model"].id, params["data"].id) == ("Salesforce/xgen-7b-8k-base", "tatsu-lab/alpaca")
    assert params["model"].revision is None and params["data"].revision is None  # `recipe pin` writes them
    lora, train = params["lora"], params["train"]
    assert (lora.r, lora.alpha, lora.dropout, lora.target_modules) == (16, 32, 0.05, "all-linear")
    assert (train.learning_rate, train.lr_schedule, train.warmup_ratio) == (2e-4, "linear", 0.1)
    assert (train.num_epochs, train.batch_size, params["sequence"].max_length) == (1, 4, 1024)
    assert train.quantization == "nf4"


@pytest.fixture
def repository(tmp_path):
    """The files of this repository in one of their own, with no outputs."""
    made = tmp_path / "repository"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists() and name != "dvc.lock" and not name.startswith("metrics/"):
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, made / name, follow_symlinks=False)
    subprocess.run(["git", "init", "-q"], cwd=made, check=True)
    return made


def xgen_files(tmp_path):
    """XGen's shape: the config with tiny sizes, .bin shards with an index, a tokenizer that claims remote code."""
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
    """Alpaca's shape: Parquet with instruction, input, output and text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = json.loads((shared / "alpaca_en_999.json").read_text(encoding="utf-8"))[:count]
    rows = [{name: row[name] for name in ("instruction", "input", "output")} | {"text": "x"} for row in rows]
    rows.append({"instruction": "Say nothing.", "input": "", "output": "", "text": "x"})  # as Alpaca has 28
    data = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), data)
    return data.getvalue()


class Session:
    """Commands in a preset's folder, against a Hub on loopback."""

    def __init__(self, folder: Path, hub: FakeHub):
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        self.environment = {
            **kept, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder.parent / "hf"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }  # fmt: skip
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
        path = self.folder / "params.yaml"
        text = path.read_text()
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new, 1)
        path.write_text(text)


@pytest.mark.slow
def test_the_real_recipe_runs_whole(repository, shared, tmp_path):
    """presets/xgen-7b-alpaca with only sizes, precision and endpoint changed: unpinned, pinned, run, cache emptied."""
    with FakeHub() as hub:
        hub.add("model", "Salesforce/xgen-7b-8k-base", xgen_files(tmp_path))
        card = b"---\nlicense: cc-by-nc-4.0\n---\n# Alpaca\n"
        rows = {"README.md": card, "data/train-00000-of-00001-a09b74b3ef9c3b56.parquet": alpaca_parquet(shared, 150)}
        hub.add("dataset", "tatsu-lab/alpaca", rows)
        gpt2 = {"vocab.json": "encoder.json", "merges.txt": "vocab.bpe"}
        files = {ours: (shared / "gpt2" / theirs).read_bytes() for ours, theirs in gpt2.items()}
        hub.add("model", GPT2, files, commit=GPT2_REVISION)
        here = Session(repository / "presets" / "xgen-7b-alpaca", hub)

        assert "`recipe pin`" in here.run("dvc", "repro", code=None)
        assert here.run("recipe", "pin").count("+  revision: ") == 2
        here.edit(
            ("num_prompts: 100", "num_prompts: 4"), ("max_new_tokens: 256", "max_new_tokens: 8"),
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

        lock, asked = (here.folder / "dvc.lock").read_bytes(), len(hub.requests)
        shutil.rmtree(here.folder.parent / "hf")
        (here.folder / "models/adapter/adapter_model.safetensors").unlink()
        out = here.run("recipe", "train", code=4)
        assert "`recipe fetch model` brings it back, and changes no output" in out and len(hub.requests) == asked
        here.run("recipe", "fetch", "model")
        here.run("dvc", "repro")
        assert (here.folder / "dvc.lock").read_bytes() == lock
